"""The guard: what the cloud's tokens say of the refined prompt."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError
from pdd_core.refinement.guard import LEAST_LOGPROB, Guard

GUARD = Guard(threshold=0.5, least_tokens=2, tokens=4, span=2)
logprobs = st.lists(st.floats(max_value=0, allow_nan=False), max_size=20)


def test_the_excess_is_per_token():
    assert GUARD.excess([-0.5, -0.1], [-1.5, -0.1]) == 0.5
    assert GUARD.excess([-1.5], [-0.5]) == -1.0
    assert GUARD.excess([], [-0.5]) == 0.0


def test_the_worst_tokens_in_a_row_count_wherever_they_stand():
    assert GUARD.excess([0.0] * 4, [0.0, -1.0, -2.0, 0.0]) == 1.5
    assert GUARD.excess([0.0] * 4, [-1.0, 0.0, -2.0, 0.0]) == 1.0


def test_only_the_first_tokens_count_and_only_those_that_both_have():
    assert GUARD.excess([0.0] * 9, [-1.0] * 4 + [-9.0] * 5) == 1.0
    assert GUARD.excess([0.0] * 9, [-1.0, -2.0]) == 1.5


@given(logprobs, logprobs)
def test_further_tokens_take_nothing_back(cloud, device):
    found = [GUARD.excess(cloud[:count], device[:count]) for count in range(GUARD.span, len(cloud) + 1)]
    assert found == sorted(found)


def test_a_loss_lies_above_the_threshold():
    assert not GUARD.lost([0.0, 0.0], [-0.5, -0.5])
    assert GUARD.lost([0.0, 0.0], [-0.5, -0.75])


def test_too_few_tokens_say_nothing():
    assert not GUARD.lost([0.0], [-19.0])
    assert not GUARD.lost([0.0, 0.0], [-19.0])


def test_no_token_counts_more_than_the_bound():
    assert GUARD.excess([0.0], [-math.inf]) == -LEAST_LOGPROB
    assert GUARD.excess([-9999.0], [-math.inf]) == 0.0


def test_a_likelihood_that_is_no_number_is_a_loss():
    assert GUARD.lost([0.0, 0.0], [math.nan, 0.0])
    assert GUARD.lost([0.0, 0.0, 0.0], [0.0, 0.0, math.nan])
    assert GUARD.lost([math.nan, 0.0], [-1.0, 0.0])


@given(logprobs)
def test_equal_likelihoods_are_never_a_loss(values):
    assert GUARD.excess(values, values) == 0
    assert not Guard().lost(values, values)


@given(logprobs, logprobs)
def test_the_excess_is_bounded(cloud, device):
    assert abs(Guard().excess(cloud, device)) <= -LEAST_LOGPROB


@pytest.mark.parametrize(
    "fields",
    [
        {"threshold": 0},
        {"threshold": math.nan},
        {"least_tokens": 0},
        {"least_tokens": 9, "tokens": 8},
        {"span": 0},
    ],
)
def test_values_that_cannot_work_are_told(fields):
    with pytest.raises(ConfigurationError, match=next(iter(fields))):
        Guard(**fields)
