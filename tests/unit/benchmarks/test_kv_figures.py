"""What the benchmark of the KV cache makes of its answers."""

import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import kv_figures

    yield kv_figures
    del sys.modules["kv_figures"]


def answer(mode, *, link=None, number=0, took_over=None, ttft=0.1, cloud=10, kv=None, **changes):
    return {
        "mode": mode, "link": link, "round": number, "ttft_s": ttft, "took_over_at": took_over, "tokens": 20,
        "cloud_tokens": cloud, "gap_max_s": 0.1, "stalls": 0, "extensions": 0, "cloud_error": None,
        "refinement": None, "kv": kv, "shown_at": [ttft, 9.0], **changes,
    }  # fmt: skip


def cells(**changes):
    return {
        "cells": 90,
        "prefilled": 10,
        "bytes": 1_000_000,
        "seconds": 0.1,
        "reason": None,
        "guard": "agreed",
        **changes,
    }


def test_ways_without_cells_have_one_link(bench) -> None:
    planned = bench.planned(["device_only", "handoff", "kv"], ["20mbit", "100mbit"], "100mbit")
    assert [cell.name for cell in planned] == ["device_only", "handoff 100mbit", "kv 20mbit", "kv 100mbit"]


def test_the_time_until_a_device_makes_tokens_is_the_same_question_for_each_way(bench) -> None:
    assert bench.ready_s([answer("device_only", ttft=24.0)]) == 24.0
    assert bench.ready_s([answer("handoff", took_over=6.0)]) == 6.0
    assert bench.ready_s([answer("handoff")]) == 9.0  # never taken over: no sooner than the answer's end


def test_rounds_that_lie_apart_are_unsteady(bench) -> None:
    assert bench.unsteadiness([2.0]) == 0
    assert bench.unsteadiness([1.95, 2.05]) == pytest.approx(0.05)
    assert bench.unsteadiness([1.0, 2.0, 3.0]) == pytest.approx(1.0)


def test_a_row_has_ratios_to_the_other_ways_of_the_run(bench) -> None:
    plan = bench.planned(["device_only", "handoff", "kv"], ["20mbit", "100mbit"], "100mbit")
    answers = [
        answer("device_only", ttft=20.0, cloud=0),
        answer("handoff", link="100mbit", cloud=256),
        answer("kv", link="20mbit", took_over=5.0, cloud=60, kv=cells()),
        answer("kv", link="100mbit", took_over=1.95, cloud=20, kv=cells()),
        answer("kv", link="100mbit", took_over=2.05, cloud=24, kv=cells(), number=1),
    ]
    alone, handoff, slow, fast = bench.summary(plan, answers)
    assert (alone["ttft_over_alone"], alone["ready_over_alone"]) == (1.0, 1.0)
    assert handoff["took_over"] == 0
    assert handoff["ready_over_alone"] == 9.0 / 20
    assert slow["cloud_tokens_over_handoff"] == 60 / 256
    assert (fast["answers"], fast["rounds"], fast["steady"]) == (2, 2, True)
    assert fast["ready_over_alone"] == pytest.approx(0.1)
    assert fast["mbit_s"] == pytest.approx(80.0)
    assert fast["guard"] == {"agreed": 2}


def test_what_was_not_measured_has_no_row_and_no_ratio(bench) -> None:
    plan = bench.planned(["device_only", "kv"], ["20mbit"], "100mbit")
    [row] = bench.summary(plan, [answer("kv", link="20mbit", kv=cells(bytes=0, seconds=0.0, reason="no_room"))])
    assert (
        row["ttft_over_alone"] is row["cloud_tokens_over_handoff"] is row["mbit_s"] is row["took_over_s"] is None
    )
    assert row["no_cells"] == {"no_room": 1}


def test_the_table_is_whole_and_names_what_is_unsteady(bench) -> None:
    plan = bench.planned(["kv", "refined"], ["20mbit"], "20mbit")
    answers = [
        answer("kv", link="20mbit", took_over=2.0, kv=cells()),
        answer("kv", link="20mbit", took_over=3.0, kv=cells(guard="disagreed"), number=1),
        answer("refined", link="20mbit", took_over=4.0, refinement={"guard": "agreed"}),
    ]
    head, rule, *rows = bench.table(bench.summary(plan, answers)).splitlines()
    assert {line.count("|") for line in (head, rule, *rows)} == {17}
    assert "1 agreed, 1 disagreed" in rows[0]
    assert rows[0].endswith("| 40 % apart |")
    assert "2.50 s, 3.00 s" in rows[0]
    assert rows[1].endswith("| 1 agreed | yes |")
