from __future__ import annotations

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

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


CASE = SimpleNamespace(key="a")
RECORD = {
    "case": {"kind": "passkey"},
    "prompt_tokens": 5,
    "protected": 2,
    "opening": [1],
    "answer": [2, 3],
    "text": "x",
    "cloud": [-0.1, -0.2],
    "compared": [0, 1],
    "right": True,
    "outcomes": {"k": {"kept": 1, "device": [-0.1], "same": "1", "evidence": True, "score": 1.0, "kl": 0.5}},
}


def bomb(path):
    """A member that says it has 10 TB."""
    header = b"{'descr': '<f4', 'fortran_order': False, 'shape': (2500000000000,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("values.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)


def pickled(path):
    np.savez(path, values=np.array([object()], dtype=object))


def arrays(**named):
    def write(path):
        with path.open("wb") as file:
            np.savez(file, **named)

    return write


def raw(content):
    def write(path):
        path.write_bytes(content)

    return write


@pytest.mark.parametrize(
    "lies_there",
    [
        raw(b""),
        raw(b"PK\x03\x04" + b"\0" * 40),
        raw(b"\x93NUMPY"),
        Path.mkdir,
        bomb,
        arrays(values=np.zeros((2, 500_000), np.float32)),
        pickled,
        arrays(other=np.zeros((2, 5), np.float32)),
        arrays(values=np.zeros((2, 4), np.float32)),
        arrays(values=np.zeros((2, 5))),
        arrays(values=np.full((2, 5), np.nan, np.float32)),
    ],
)
def test_an_array_that_cannot_be_used_is_set_aside(tmp_path, caplog, lies_there):
    store = ResultStore(tmp_path)
    lies_there(tmp_path / "a-scores.npz")
    assert store.values(CASE, "scores", (2, 5)) is None
    assert len(caplog.records) == 1
    store.keep_values(CASE, "scores", np.ones((2, 5), np.float32))
    assert store.values(CASE, "scores", (2, 5)).sum() == 10
    assert len(caplog.records) == 1


def test_what_is_not_there_is_no_warning(tmp_path, caplog):
    assert ResultStore(tmp_path).values(CASE, "scores", (2, 5)) is None
    assert ResultStore(tmp_path).record(CASE) is None
    assert not caplog.records


@pytest.mark.parametrize(
    "changes",
    [
        {"right": None},
        {"outcomes": []},
        {"outcomes": {"k": {"kept": 1}}},
        {"answer": "text"},
        {"answer": [10**400]},
        {"cloud": [float("nan")]},
        {"compared": [1]},
        {"case": 3},
    ],
)
def test_a_record_that_cannot_be_used_is_set_aside(tmp_path, caplog, changes):
    store = ResultStore(tmp_path)
    store.keep(CASE, RECORD)
    assert store.record(CASE) == RECORD
    (tmp_path / "a.json").write_text(json.dumps({**RECORD, **changes}))
    assert store.record(CASE) is None
    assert "a.json is set aside" in caplog.text
    store.keep(CASE, RECORD)
    assert store.record(CASE) == RECORD


HOSTILE = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(10**400),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@examples(50)
@given(name=st.sampled_from(sorted(RECORD)), value=HOSTILE, content=st.none() | st.binary(max_size=300))
def test_a_record_is_as_it_was_kept_or_none(tmp_path_factory, name, value, content):
    folder = tmp_path_factory.mktemp("results")
    (folder / "a.json").write_bytes(json.dumps({**RECORD, name: value}).encode() if content is None else content)
    (folder / "a-scores.npz").write_bytes(content or b"")
    found = ResultStore(folder).record(CASE)
    assert found is None or found.keys() == RECORD.keys()
    assert ResultStore(folder).values(CASE, "scores", (2, 5)) is None
