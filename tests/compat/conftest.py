"""The Python half of a release of vLLM, driven without what is compiled: see tools/vllm_sources.py."""

import os
from importlib.metadata import version

import pytest

os.environ["VLLM_PLUGINS"] = "pdd"
os.environ["HF_HUB_OFFLINE"] = "1"


def pytest_report_header():
    import vllm

    return f"vLLM {version('vllm')} from {vllm.__path__[0]}"


@pytest.fixture(scope="session")
def model_dir(tmp_path_factory):
    from byte_model import write_byte_model

    return write_byte_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def anyio_backend():
    return "asyncio"
