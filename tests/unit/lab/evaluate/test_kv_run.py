from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest
from evaluate_fakes import CellReader
from rich.console import Console

from pdd_lab.evaluate import kv_run, quantised_device
from pdd_lab.evaluate.kv_settings import KVEvalSettings
from pdd_lab.evaluate.results import ResultStore

SMALL = KVEvalSettings(
    cases=2, shortest=200, longest=260, tasks=("recall",), ratios=(0.25,), refiners=("lexical",), device="Q4_K_M",
    ways=("k8v4", "selected"),
)  # fmt: skip


@pytest.fixture
def models(monkeypatch, tmp_path):
    """Models in place of the real ones, whose imports need llama.cpp."""
    opened = []

    def open_model(gguf, **options):
        opened.append(CellReader(gguf, **options))
        opened[-1].gguf = gguf
        if len(opened) > 1:
            opened[-1].vocab = opened[0].vocab
        return opened[-1]

    monkeypatch.setitem(sys.modules, "pdd_lab.evaluate.eval_model", SimpleNamespace(EvalModel=open_model))
    monkeypatch.setitem(sys.modules, "pdd_lab.evaluate.kv_model", SimpleNamespace(KVModel=open_model))
    monkeypatch.setattr(kv_run, "require", lambda *_, **__: None)
    monkeypatch.setattr("pdd_cli.demo_model.device_gguf", lambda **_: tmp_path / "model.gguf")
    monkeypatch.setattr(quantised_device, "quantised_gguf", lambda source, kind, folder: folder / f"{kind}.gguf")
    monkeypatch.setattr(ResultStore, "of_model", classmethod(lambda cls, _: cls(tmp_path / "store")))
    return opened


def evaluated(out):
    console = Console(file=io.StringIO(), width=200)
    kv_run.run_kv(SMALL, out=out, console=console)
    return json.loads((out / "eval-kv.json").read_text()), console.file.getvalue()


def test_an_evaluation_leaves_tables_and_a_file(models, tmp_path):
    report, text = evaluated(tmp_path)
    rows = {(row["way"], row["ratio"]): row for row in report["ways"]}
    assert list(rows) == [
        ("full", 1.0), ("k8v4", 1.0), ("selected", 1.0), ("Q4_K_M k8v4", 1.0), ("Q4_K_M selected", 1.0),
        ("Q4_K_M own", 1.0), ("lexical", 0.25),
    ]  # fmt: skip
    assert all(rows[name, 1.0]["tasks"]["recall"]["score"]["mean"] == 1 for name in ("full", "k8v4", "Q4_K_M own"))
    assert rows["k8v4", 1.0]["bytes_per_token"] == 2 * (68 + 36)
    assert report["settings"]["ways"] == ["k8v4", "selected"]
    assert report["settings"]["texts"] == ["pydoc_data.topics"]
    assert "selected cells 0.25" in text
    assert "eval-kv.json" in text
    assert all(model.closed for model in models)
    assert [model.gguf.name for model in models[-2:]] == ["model.gguf", "Q4_K_M.gguf"]


def test_a_second_run_reads_nothing_again(models, tmp_path):
    first, _ = evaluated(tmp_path)
    before = len(models)
    again, _ = evaluated(tmp_path)
    assert first == again
    assert not any(model.reads or model.forces or model.cell_reads for model in models[before:])
