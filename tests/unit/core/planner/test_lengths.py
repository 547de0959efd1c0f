from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.planner.length_table import BINS, EDGES, LONGEST, LengthTable, bin_of
from pdd_core.planner.lengths import BUCKETS, MAX_GROUPS, OutputLengths


@given(st.integers(1, LONGEST))
def test_each_length_is_in_its_bin(tokens) -> None:
    index = bin_of(tokens)
    assert EDGES[index] < tokens <= EDGES[index + 1]


@given(st.lists(st.integers(1, 16), min_size=1, max_size=40), st.integers(0, 16))
def test_a_table_of_short_answers_is_exact(outputs, limit) -> None:
    weights = np.bincount([bin_of(output) for output in outputs], minlength=BINS)
    table = LengthTable.of(weights)
    assert table.longer_than(limit) == pytest.approx(np.mean(np.array(outputs) > limit))
    least = np.minimum(outputs, limit)
    assert table.expected(limit) == pytest.approx((least.mean(), (least**2).mean()))


@given(st.lists(st.floats(0, 100), min_size=BINS, max_size=BINS).filter(any), st.integers(1, LONGEST))
def test_the_sums_are_those_of_the_chance_to_be_longer(weights, edge) -> None:
    table = LengthTable.of(weights)
    limit = next(one for one in EDGES if one >= edge)
    longer = np.interp(np.arange(limit), EDGES, table.survival)
    mean, square = table.expected(limit)
    assert mean == pytest.approx(longer.sum(), abs=1e-6)
    assert square == pytest.approx(((2 * np.arange(limit) + 1) * longer).sum(), rel=1e-6, abs=1e-6)


def test_before_anything_is_known_answers_are_of_usual_length() -> None:
    table = OutputLengths().table("", 1000)
    assert table.longer_than(120) == pytest.approx(0.5, abs=0.01)
    assert 0.2 < table.longer_than(300) < 0.3
    assert table.longer_than(LONGEST) == 0


def test_it_learns_what_an_app_s_answers_are_like_for_prompts_of_a_length() -> None:
    lengths = OutputLengths()
    for _ in range(60):
        lengths.observe("completion", 2000, 10)
        lengths.observe("chat", 2000, 300)
        lengths.observe("chat", 60, 20)
    assert lengths.table("completion", 2000).longer_than(40) < 0.1
    assert lengths.table("chat", 2000).longer_than(40) > 0.9
    assert lengths.table("chat", 60).longer_than(40) < 0.2
    # of a length never seen, what the same app's answers are like; of an app never seen, what everybody's are
    assert lengths.table("completion", 100).longer_than(40) < 0.2
    assert 0.2 < lengths.table("new", 2000).longer_than(40) < 0.5


def test_few_answers_do_not_decide_alone() -> None:
    lengths = OutputLengths()
    lengths.observe("", 1000, 5)
    assert lengths.table("", 1000).longer_than(40) > 0.4


def test_old_answers_fade() -> None:
    lengths = OutputLengths()
    for _ in range(200):
        lengths.observe("", 1000, 10)
    for _ in range(1500):
        lengths.observe("", 1000, 200)
    assert lengths.table("", 1000).longer_than(100) > 0.95


def test_an_answer_that_was_cut_short_says_only_that_it_is_longer() -> None:
    lengths, naive = OutputLengths(), OutputLengths()
    generator = np.random.default_rng(1)
    outputs = np.maximum(1, generator.lognormal(np.log(100), 0.8, 1500)).astype(int)
    limits = generator.integers(20, 200, len(outputs))
    for output, limit in zip(outputs.tolist(), limits.tolist(), strict=True):
        lengths.observe("", 500, min(output, limit), cut_short=output > limit)
        naive.observe("", 500, min(output, limit))
    truth = np.mean(outputs > 120)
    assert lengths.table("", 500).longer_than(120) == pytest.approx(truth, abs=0.06)
    assert naive.table("", 500).longer_than(120) < truth - 0.2


@pytest.mark.parametrize("tokens", [1, 40, LONGEST - 1, LONGEST, 10 * LONGEST])
def test_any_length_can_be_cut_short(tokens) -> None:
    lengths = OutputLengths()
    lengths.observe("", 10, tokens, cut_short=True)
    assert lengths.table("", 10).survival[0] == pytest.approx(1)
    assert lengths.table("", 10).survival[-1] == 0


def test_memory_is_bounded_and_the_groups_used_last_stay() -> None:
    lengths = OutputLengths()
    for number in range(MAX_GROUPS * 3):
        lengths.observe(f"app {number}", 100, 10)
        for _ in range(5):
            lengths.observe("mine", 100, 1000)
    assert len(lengths.as_json()["groups"]) == MAX_GROUPS
    assert lengths.table("mine", 100).longer_than(500) > 0.8


def test_groups_that_are_only_asked_about_share_one_table_that_is_up_to_date() -> None:
    lengths = OutputLengths()
    first = lengths.table("g0", 100)
    for number in range(500):
        assert lengths.table(f"g{number}", 10 * number) is first
    assert all(one is first for one in lengths.tables("another"))
    lengths.observe("known", 100, 3)
    second = lengths.table("g0", 100)
    assert second.longer_than(3) < first.longer_than(3)
    assert lengths.table("known", 100).longer_than(3) < second.longer_than(3)
    assert len(lengths._tables) <= MAX_GROUPS * BUCKETS


def test_it_can_be_written_and_read_and_names_nobody() -> None:
    lengths = OutputLengths()
    for number in range(50):
        lengths.observe("alice@example.org", 700, 30 + number)
    written = json.dumps(lengths.as_json())
    assert "alice" not in written
    again = OutputLengths()
    again.restore(json.loads(written))
    for bucket, table in enumerate(lengths.tables("alice@example.org")):
        assert again.tables("alice@example.org")[bucket].survival == pytest.approx(table.survival, abs=1e-3)


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"everyone": {}, "groups": []},
        {"everyone": {"9999": 1}, "groups": {}},
        {"everyone": {"3": -1}, "groups": {}},
        {"everyone": {"3": float("nan")}, "groups": {}},
        {"everyone": {}, "groups": {"a": {str(BUCKETS): {"1": 1}}}},
    ],
)
def test_what_is_not_its_own_is_refused(data) -> None:
    lengths = OutputLengths()
    lengths.observe("", 10, 10)
    before = lengths.as_json()
    with pytest.raises((ValueError, TypeError, KeyError, AttributeError, IndexError)):
        lengths.restore(data)
    assert lengths.as_json() == before
