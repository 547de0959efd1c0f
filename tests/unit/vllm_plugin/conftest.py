import sys
import tempfile
from pathlib import Path
from types import ModuleType

import pytest


class FakeValidationError(ValueError):
    def __init__(self, message, *, parameter=None):
        super().__init__(message)
        self.parameter = parameter


@pytest.fixture(autouse=True)
def vllm_exceptions(monkeypatch):
    """The one class the recorder takes from vLLM, which is not installed here."""
    exceptions = ModuleType("vllm.exceptions")
    exceptions.VLLMValidationError = FakeValidationError
    monkeypatch.setitem(sys.modules, "vllm.exceptions", exceptions)
    if "vllm" not in sys.modules:
        monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def base():
    """A folder with a path so short that sockets can be in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)
