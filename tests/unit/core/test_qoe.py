from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError
from pdd_core.qoe import longest_wait, qoe

gaps = st.lists(st.floats(0, 5), min_size=1, max_size=60)


def times(found: list[float]) -> list[float]:
    total = 0.0
    return [total := total + gap for gap in found]


def areas(shown: list[float], rate: float, ttft: float) -> float:
    """The definition, read literally: a reader who takes in one token after the other."""
    read: list[float] = []
    for index, at in enumerate(shown):
        earliest = ttft + index / rate
        read.append(max(at, earliest, read[-1] + 1 / rate if read else 0.0))
    end = read[-1] + 1 / rate
    delay = sum(at - (ttft + index / rate) for index, at in enumerate(read))
    whole = sum(end - (ttft + index / rate) for index in range(len(read)))
    return 1 - delay / whole


def test_an_answer_on_time_has_one() -> None:
    assert qoe([0.5, 0.6, 0.7, 0.8], rate=10, ttft=0.5) == pytest.approx(1.0)


def test_early_tokens_earn_nothing() -> None:
    assert qoe([0.0, 0.0, 0.0], rate=10, ttft=0.5) == 1.0


def test_a_late_first_token_costs_its_share_of_the_area() -> None:
    # expected at 0, 1; taken in at 1, 2, read at 3: the delay is 1 + 1, the whole 3 + 2
    assert qoe([1.0, 1.1], rate=1, ttft=0.0) == pytest.approx(1 - 2 / 5)


def test_a_stall_at_the_beginning_costs_more_than_one_at_the_end() -> None:
    early = qoe([0, 5, 6, 7, 8, 9], rate=1, ttft=0)
    late = qoe([0, 1, 2, 3, 4, 9], rate=1, ttft=0)
    assert early < late < 1


def test_nobody_waits_for_an_answer_without_a_token() -> None:
    assert qoe([]) == 1


@pytest.mark.parametrize(("rate", "ttft"), [(0, 1), (-1, 1), (math.inf, 1), (math.nan, 1), (1, -1), (1, math.nan)])
def test_expectations_that_mean_nothing_are_refused(rate: float, ttft: float) -> None:
    with pytest.raises(ConfigurationError, match="QoE needs"):
        qoe([1.0], rate=rate, ttft=ttft)


@given(gaps, st.floats(0.5, 50), st.floats(0, 3))
def test_it_is_the_definition(found: list[float], rate: float, ttft: float) -> None:
    shown = times(found)
    assert qoe(shown, rate=rate, ttft=ttft) == pytest.approx(areas(shown, rate, ttft), abs=1e-6)


@given(gaps, st.floats(0, 5))
def test_a_whole_answer_that_comes_later_is_never_better(found: list[float], delay: float) -> None:
    later = [found[0] + delay, *found[1:]]
    assert -1e-9 <= qoe(times(later), rate=4, ttft=1) <= qoe(times(found), rate=4, ttft=1) + 1e-9


def test_it_is_a_share_of_the_time_up_to_the_end_so_a_late_end_dilutes_an_early_delay() -> None:
    assert qoe([2.0, 2.0], rate=4, ttft=1) < qoe([2.0, 3.0], rate=4, ttft=1)


def test_who_reads_a_burst_does_not_wait_while_reading() -> None:
    burst = [0.0, 0.0, 0.0, 0.0, 2.5]
    assert longest_wait(burst, rate=2) == pytest.approx(1.0)  # the fourth is taken in at 1.5
    assert longest_wait(burst, rate=math.inf) == pytest.approx(2.5)


def test_a_smooth_answer_waits_for_its_rate() -> None:
    assert longest_wait([3.0, 3.1, 3.2], rate=5) == pytest.approx(0.2)


@pytest.mark.parametrize("shown", [[], [1.0]])
def test_fewer_than_two_tokens_have_no_wait(shown: list[float]) -> None:
    assert longest_wait(shown, rate=5) == 0


@given(gaps, st.floats(0.5, 50))
def test_the_wait_is_at_least_the_rates_gap_and_at_most_the_longest_gap(found: list[float], rate: float) -> None:
    shown = times(found)
    longest = max((later - earlier for earlier, later in itertools.pairwise(shown)), default=0.0)
    wait = longest_wait(shown, rate=rate)
    assert wait <= max(longest, 1 / rate) + 1e-9
    assert len(shown) < 2 or wait >= 1 / rate - 1e-9
