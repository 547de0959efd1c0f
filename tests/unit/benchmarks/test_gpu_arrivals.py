"""Arrivals out of a trace at another rate, and what is said of a burst."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

GPU = Path(__file__).parents[3] / "benchmarks" / "gpu"
CSV = "TIMESTAMP,ContextTokens,GeneratedTokens\n" + "".join(
    f"2023-11-16 18:15:{second:02}.1234567,{100 + second},{10 + second}\n"
    for second in (0, 1, 2, 4, 8, 16, 17, 40)
)


@pytest.fixture
def bench(monkeypatch):
    """The scripts' modules, imported and forgotten again."""
    monkeypatch.syspath_prepend(str(GPU))
    before = set(sys.modules)
    import arrivals
    import budgets
    import burst
    import online_engine

    yield SimpleNamespace(arrivals=arrivals, budgets=budgets, burst=burst, engine=online_engine)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == GPU:
            del sys.modules[name]


def test_a_trace_is_read_and_what_is_too_long_left_out(bench, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(CSV)
    read = bench.arrivals.read_trace(path, max_tokens=140)
    assert [(one.at, one.prompt, one.output) for one in read[:3]] == [(0, 100, 10), (1, 101, 11), (2, 102, 12)]
    assert max(one.prompt + one.output for one in read) <= 140


def test_phases_have_their_rates_and_keep_the_traces_rhythm(bench, tmp_path):
    path = tmp_path / "trace.csv"
    path.write_text(CSV)
    trace = bench.arrivals.read_trace(path, max_tokens=1000)
    made = bench.arrivals.at_rates(trace, [(0.5, 8.0), (2.0, 1.5)], skip=1)
    assert [one.prompt for one in made] == [one.prompt for one in trace[1:8]]
    assert [one.at for one in made[:4]] == pytest.approx([0, 8 / 7, 8 * 3 / 7, 8])  # seconds 1, 2, 4 and 8
    assert [one.at for one in made[4:]] == pytest.approx([8.0, 8 + 1.5 / 24, 9.5])  # 16, 17 and 40
    with pytest.raises(ValueError, match="7 are needed"):
        bench.arrivals.at_rates(trace, [(1.0, 7.0)], skip=4)


def test_the_planners_budget_is_the_base_formula(bench):
    assert [bench.budgets.planner_budget(tokens) for tokens in (128, 256, 1024, 2048)] == [3, 6, 21, 42]
    assert [bench.budgets.planner_budget(tokens, ratio=0.25) for tokens in (128, 1024)] == [1, 6]
    with pytest.raises(ValueError, match="never catches up"):
        bench.budgets.planner_budget(100, prefill_tps=10)


def test_a_burst_is_judged_by_those_who_came_in_it_and_by_how_long_it_is_felt(bench):
    load = bench.burst.BurstLoad(prompt=128, output=100, budget=50, seconds=(4.0, 2.0, 6.0))
    burst = bench.burst.Burst(None, load)
    burst._ended = 100.0

    def row(at, ttft, tokens, per_token=0.01):
        arrival = bench.arrivals.Arrival(at, 128, 100)
        first = at + ttft
        return bench.engine.Served(
            arrival,
            50,
            due=at,
            sent=at,
            first=first,
            last=first + per_token * (tokens - 1),
            tokens=tokens,
            done=True,
        )

    rows = [row(at / 10, 0.05, 50) for at in range(40)]
    rows += [row(4 + at / 10, 1.0, 3) for at in range(20)]  # in the burst
    rows += [row(6.5, 0.9, 3), row(7.5, 0.05, 10, per_token=0.06), row(8.0, 0.05, 50), row(9.0, 0.05, 2)]
    figures = burst._figures(rows)
    assert (figures["in_burst"], figures["ttft_p99_s"], figures["ttft_p99_before_s"]) == pytest.approx(
        (20, 1.0, 0.05)
    )
    assert figures["ttft_normal_after_s"] == pytest.approx(0.5)  # the one of 6.5
    assert figures["budgets_normal_after_s"] == pytest.approx(3.0)  # the one of 9.0 had but 2
    assert (figures["below_the_least"], figures["slower_than_shown"]) == (1, 1)
