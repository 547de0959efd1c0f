"""`pdd-device eval refine` with the real model: the whole of it, small."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from pdd_core.refinement.refiners import REFINERS

pytestmark = pytest.mark.timeout(900)

RATIOS = (0.25, 0.5, 1.0)


@pytest.fixture(scope="module")
def evaluate(gguf, tmp_path_factory):
    pytest.importorskip("matplotlib")
    folder = tmp_path_factory.mktemp("evaluation")

    def run(out, *flags, fresh=False):
        cache = folder / (out if fresh else "shared")
        command = [sys.executable, "-m", "pdd_cli.main", "eval", "refine", "--quick", "--gguf", str(gguf)]
        done = subprocess.run(
            [*command, "--out", str(folder / out), *flags],
            env={**os.environ, "PDD_CACHE_DIR": str(cache), "COLUMNS": "160"},
            capture_output=True, text=True, timeout=900,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return folder / out, done.stdout

    return run


@pytest.fixture(scope="module")
def first(evaluate):
    return evaluate("first", "--jobs", "2", "--threads", "2")


def test_it_leaves_figures_for_every_task_refiner_and_ratio(first):
    folder, printed = first
    report = json.loads((folder / "eval-refine.json").read_text())
    assert set(report["tasks"]) == {"agreement", "recall", "answers"}
    for name, task in report["tasks"].items():
        assert task["scored"] == 3
        scores = {(row["refiner"], row["ratio"]): row["score"]["mean"] for row in task["settings"]}
        told = set() if name == "agreement" else {("informed", ratio) for ratio in RATIOS if ratio < 1}
        assert set(scores) == {*((name, ratio) for name in REFINERS for ratio in RATIOS), ("none", 0.0)} | told
        assert all(scores[name, 1.0] == 1 for name in REFINERS)
    assert (folder / "eval-refine.png").read_bytes().startswith(b"\x89PNG")
    assert "The guard: how often it fires" in printed


def test_the_guard_never_fires_at_the_full_prompt(first):
    report = json.loads((first[0] / "eval-refine.json").read_text())
    for counts in report["guard"]["tasks"].values():
        for by_tokens in counts:
            (row,) = (r for r in by_tokens["thresholds"] if r["threshold"] == report["guard"]["threshold"])
            assert row["ratio_1"]["mean"] == 0


def test_one_process_finds_what_two_have_measured_and_says_the_same(first, evaluate):
    again, _ = evaluate("again", "--jobs", "1", "--threads", "1")
    assert (again / "eval-refine.json").read_text() == (first[0] / "eval-refine.json").read_text()


def test_one_process_measures_what_two_do(first, evaluate):
    alone, _ = evaluate("alone", "--task", "recall", "--jobs", "1", "--threads", "1", fresh=True)
    reports = [json.loads((folder / "eval-refine.json").read_text()) for folder in (alone, first[0])]
    assert reports[0]["tasks"]["recall"] == reports[1]["tasks"]["recall"]
