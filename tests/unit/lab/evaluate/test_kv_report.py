from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from rich.console import Console

from pdd_lab.evaluate.examination import MeasuredCase
from pdd_lab.evaluate.kv_presentation import kv_tables
from pdd_lab.evaluate.kv_report import bytes_of, kv_figures
from pdd_lab.evaluate.kv_settings import KVEvalSettings
from pdd_lab.evaluate.report import GUARD_TOKENS, TaskResults

SHAPE = SimpleNamespace(num_layers=30, num_kv_heads=3, head_size=64)


def outcome(score, *, away=0.0, kept=100, **more):
    return {"kept": kept, "score": score, "device": [-0.1 - away] * 8, "same": "1" * 8, **more}


def results(task, scores, *, away=0.0, **more):
    found = TaskResults(task)
    for score in scores:
        record = {"case": {"kind": "any"}, "prompt_tokens": 100, "cloud": [-0.1] * 8}
        outcomes = {
            ("full", 1.0): outcome(1.0, **more),
            ("k8v4", 1.0): outcome(score, away=away, **more),
            ("Q4_K_M k8v4", 1.0): outcome(score, away=0.2, **more),
            ("Q4_K_M own", 1.0): outcome(score, away=0.5, **more),
            ("lexical", 0.25): outcome(0.0, away=3.0, kept=25, **more),
        }
        found.add(MeasuredCase(record, outcomes))
    found.add(MeasuredCase({"right": False}, {}))
    return found


@pytest.fixture
def report():
    settings = KVEvalSettings(device="Q4_K_M")
    measured = [results("recall", [1.0] * 9 + [0.0]), results("agreement", [0.98, 1.0], kl=0.01)]
    figures = kv_figures(measured, bytes_per_token=bytes_of(settings, SHAPE))
    return {"settings": {"device": settings.device}, **figures}


def way(report, name):
    return next(way for way in report["ways"] if way["way"] == name)


def test_bytes_are_those_of_the_types_and_of_the_share():
    found = bytes_of(KVEvalSettings(ways=("k8v4", "f16", "selected")), SHAPE)
    assert found == {"k8v4": 9_360, "f16": 23_040, "selected": 5_760}


def test_each_way_has_its_score_with_its_interval(report):
    tasks = way(report, "k8v4")["tasks"]
    assert tasks["recall"]["score"] == {"mean": 0.9, "low": 0.5958, "high": 0.9821, "n": 10}
    assert tasks["agreement"]["score"]["mean"] == pytest.approx(0.99)
    assert tasks["agreement"]["kl"]["mean"] == 0.01
    assert tasks["recall"]["kl"] is None
    assert report["tried"] == {"recall": 11, "agreement": 3}
    assert report["scored"] == {"recall": 10, "agreement": 2}


def test_bytes_are_told_of_what_is_sent(report):
    told = {found["way"]: found["bytes_per_token"] for found in report["ways"]}
    assert told == {"full": None, "k8v4": 9_360, "Q4_K_M k8v4": 9_360, "Q4_K_M own": None, "lexical": None}


def test_the_guard_is_counted_over_all_tasks(report):
    for name, fired, mean in (
        ("full", 0, 0),
        ("Q4_K_M k8v4", 0, 0.2),
        ("Q4_K_M own", 12, 0.5),
        ("lexical", 12, 3.0),
    ):
        found = way(report, name)["guard"]
        assert [row["tokens"] for row in found] == list(GUARD_TOKENS)
        assert all((row["fired"], row["share"]["n"]) == (fired, 12) for row in found)
        assert found[0]["mean"] == found[0]["greatest"] == pytest.approx(mean)


def test_a_device_with_other_weights_has_a_table_of_its_own(report):
    same, other = kv_tables(report)
    console = Console(record=True, width=160)
    console.print(same, other)
    lines = console.export_text().splitlines()
    assert any("Q4_K_M" in line for line in lines)
    (own,) = (line for line in lines if " own " in line)
    assert "12 of 12" in own
    assert sum(" k8v4 " in line and "9,360" in line for line in lines) == 2
    (refined,) = (line for line in lines if "refined 0.25, lexical" in line)
    assert "0.0 (0-28)" in refined
    json.dumps(report, allow_nan=False)


def test_a_model_that_gets_nothing_right_has_no_rows():
    empty = TaskResults("recall")
    empty.add(MeasuredCase({"right": False}, {}))
    assert kv_figures([empty], bytes_per_token={})["ways"] == []
