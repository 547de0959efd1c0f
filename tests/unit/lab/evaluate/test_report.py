from __future__ import annotations

import json

import pytest
from rich.console import Console

from pdd_lab.evaluate.evaluation_settings import BAD, INFORMED, NONE
from pdd_lab.evaluate.examination import MeasuredCase
from pdd_lab.evaluate.presentation import draw, tables
from pdd_lab.evaluate.report import GUARD_TOKENS, TaskResults, figures

ALIKE, FAR = -0.1, -9.0


def outcome(score, *, device, kept=25, kl=None):
    found = {"kept": kept, "score": score, "device": [device] * 8, "same": "1" * 8}
    return found | ({"evidence": score > 0} if kl is None else {"kl": kl})


def measured(task, *, score, kind="passkey", kl=None):
    record = {"case": {"kind": kind}, "prompt_tokens": 100, "cloud": [-0.1] * 8}
    whole, little = (None, None) if kl is None else (0.0, kl)
    outcomes = {
        ("attention", 0.25): outcome(score, device=ALIKE if score else FAR, kl=little),
        ("attention", 1.0): outcome(1.0, device=ALIKE, kept=100, kl=whole),
        ("random", 0.25): outcome(0.0, device=FAR, kl=little),
        BAD: outcome(0.0, device=FAR, kept=10, kl=little),
        (NONE, 0.0): outcome(0.0, device=FAR, kept=10, kl=little),
    }
    return MeasuredCase(record, outcomes)


@pytest.fixture
def recall():
    results = TaskResults("recall")
    for number in range(10):
        results.add(measured("recall", score=float(number != 3), kind=("passkey", "key-value")[number % 2]))
    results.add(MeasuredCase({"right": False}, {}))
    return results


@pytest.fixture
def agreement():
    results = TaskResults("agreement")
    for share in (0.5, 0.7, 0.95):
        results.add(measured("agreement", score=share, kind="open", kl=1.5))
    return results


def row(report, task, refiner, ratio):
    (found,) = (
        row for row in report["tasks"][task]["settings"] if (row["refiner"], row["ratio"]) == (refiner, ratio)
    )
    return found


def test_shares_of_right_answers_have_wilsons_interval(recall):
    report = figures([recall], bad=BAD)
    found = row(report, "recall", "attention", 0.25)
    assert found["score"] == {"mean": 0.9, "low": 0.5958, "high": 0.9821, "n": 10}
    assert found["kept"] == 0.25
    assert found["kl"] is None
    assert found["by_kind"]["key-value"]["mean"] == 0.8
    assert found["by_kind"]["passkey"]["mean"] == 1.0


def test_a_case_that_the_model_cannot_do_is_counted_as_tried_alone(recall):
    report = figures([recall], bad=BAD)
    assert report["tried"] == {"recall": 11}
    assert report["tasks"]["recall"]["scored"] == 10
    assert report["tasks"]["recall"]["kinds"] == {"key-value": 5, "passkey": 5}


def test_how_often_the_evidence_was_kept_stands_beside_the_score(recall, agreement):
    report = figures([recall, agreement], bad=BAD)
    assert row(report, "recall", "attention", 0.25)["evidence"]["mean"] == 0.9
    assert row(report, "recall", "random", 0.25)["evidence"]["mean"] == 0
    assert row(report, "agreement", "attention", 0.25)["evidence"] is None


def test_the_guard_is_not_judged_by_what_knows_the_answer(recall):
    before = figures([recall], bad=BAD)["guard"]
    recall.outcomes[INFORMED, 0.25] = [outcome(1.0, device=FAR)] * len(recall.records)
    after = figures([recall], bad=BAD)["guard"]
    assert after["tasks"]["recall"][0]["thresholds"] == before["tasks"]["recall"][0]["thresholds"]


def test_agreement_is_a_mean_with_its_divergence(agreement):
    found = row(figures([agreement], bad=BAD), "agreement", "attention", 0.25)
    assert found["score"]["mean"] == pytest.approx(0.7167, abs=1e-4)
    assert found["kl"]["mean"] == 1.5
    assert found["by_kind"] is None


def test_the_bad_setting_is_the_guards_and_no_row_of_the_table(recall):
    rows = figures([recall], bad=BAD)["tasks"]["recall"]["settings"]
    assert [(row["refiner"], row["ratio"]) for row in rows] == [
        ("attention", 0.25), ("attention", 1.0), ("random", 0.25), (NONE, 0.0),
    ]  # fmt: skip


def test_the_guards_rates_are_those_of_its_threshold(recall):
    (few, many) = figures([recall], bad=BAD)["guard"]["tasks"]["recall"]
    assert (few["tokens"], many["tokens"]) == GUARD_TOKENS
    for found in few["thresholds"]:
        assert found["bad"]["mean"] == 1
        assert found["ratio_1"]["mean"] == 0
        # lost: one of attention's ten, all of random's; each has a likelihood far from the cloud's
        assert (found["false_alarms"]["mean"], found["false_alarms"]["n"]) == (0, 9)
        assert (found["misses"]["mean"], found["misses"]["n"]) == (0, 11)
    assert few["largest_at_ratio_1"] < few["bad_95_percent_above"]


def test_a_model_that_gets_nothing_right_has_no_figures():
    results = TaskResults("recall")
    results.add(MeasuredCase({"right": False}, {}))
    report = figures([results], bad=BAD)
    assert report["tried"] == {"recall": 1}
    assert report["tasks"] == report["guard"]["tasks"] == {}
    json.dumps(report, allow_nan=False)


def test_the_report_is_json_and_tables_and_a_picture(recall, agreement, tmp_path):
    report = figures([recall, agreement], bad=BAD)
    json.dumps(report, allow_nan=False)
    console = Console(record=True, width=160)
    for table in tables(report):
        console.print(table)
    text = console.export_text()
    words = " ".join(text.split())
    assert "Recall of hidden numbers, exact (%): 10 cases, of 11 tried" in words
    assert "90 (60-98)" in text
    assert "KL from the full prompt" in words
    assert any("protected alone" in line and "0 (0-28)" in line for line in text.splitlines())
    picture = tmp_path / "figure.png"
    draw(report, picture)
    first = picture.read_bytes()
    assert first.startswith(b"\x89PNG")
    draw(report, picture)
    assert picture.read_bytes() == first
