from __future__ import annotations

import pytest

from pdd_lab.evaluate import results as store
from pdd_lab.evaluate.results import ResultStore


@pytest.fixture
def gguf(tmp_path, monkeypatch):
    monkeypatch.setenv("PDD_CACHE_DIR", str(tmp_path / "cache"))
    file = tmp_path / "model.gguf"
    file.write_bytes(b"GGUF")
    return file


def test_results_are_of_a_model_and_of_a_llama_cpp(gguf, monkeypatch):
    """Another version has other kernels, and gives other bits."""
    monkeypatch.setattr(store, "version_of", {"llama-cpp-python": "0.3.36"}.get)
    folder = ResultStore.of_model(gguf).folder
    assert ResultStore.of_model(gguf).folder == folder
    monkeypatch.setattr(store, "version_of", {"llama-cpp-python": "0.3.37"}.get)
    assert ResultStore.of_model(gguf).folder != folder
    gguf.write_bytes(b"other")
    monkeypatch.setattr(store, "version_of", {"llama-cpp-python": "0.3.36"}.get)
    assert ResultStore.of_model(gguf).folder != folder
