import sys
import tempfile
from pathlib import Path
from types import ModuleType, SimpleNamespace

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
def arg_utils(monkeypatch):
    """vLLM's module with the class that makes configurations."""
    module = ModuleType("vllm.engine.arg_utils")

    class EngineArgs:
        made = SimpleNamespace()

        def create_engine_config(self, usage_context=None, headless=False):
            self.made.headless = headless
            return self.made

    module.EngineArgs = EngineArgs
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return module


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def base():
    """A folder with a path so short that sockets can be in it."""
    with tempfile.TemporaryDirectory(dir="/tmp") as path:
        yield Path(path)
