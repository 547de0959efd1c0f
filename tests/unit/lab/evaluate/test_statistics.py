from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_lab.evaluate.statistics import bootstrap, divergence, log_softmax, separating, wilson


def test_wilson_gives_the_known_interval():
    # Brown, Cai and DasGupta (2001): 8 of 10
    found = wilson(8, 10)
    assert found.mean == 0.8
    assert found.low == pytest.approx(0.4902, abs=1e-4)
    assert found.high == pytest.approx(0.9433, abs=1e-4)


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_holds_the_share_and_stays_within_0_and_1(pair):
    found = wilson(*pair)
    assert 0 <= found.low <= found.mean <= found.high <= 1
    assert found.low < found.high


def test_wilson_of_no_case_knows_nothing():
    found = wilson(0, 0)
    assert math.isnan(found.mean)
    assert (found.low, found.high, found.n) == (0, 1, 0)


def test_bootstrap_is_the_same_each_time_and_narrows_with_cases():
    values = [0.2, 0.9, 0.4, 0.7, 0.5]
    assert bootstrap(values) == bootstrap(values)
    few, many = bootstrap(values), bootstrap(values * 20)
    assert few.mean == pytest.approx(many.mean) == pytest.approx(0.54)
    assert few.low <= many.low < many.mean < many.high <= few.high


def test_bootstrap_of_equal_values_has_no_width():
    found = bootstrap([0.5] * 7)
    assert (found.low, found.mean, found.high, found.n) == (0.5, 0.5, 0.5, 7)


def test_bootstrap_of_nothing_knows_nothing():
    assert math.isnan(bootstrap([]).mean)


def test_log_softmax_adds_up_even_for_large_logits():
    rows = log_softmax(np.array([[1000.0, 1001.0, 999.0], [0.0, 0.0, 0.0]], dtype=np.float32))
    np.testing.assert_allclose(np.exp(rows).sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_allclose(rows[1], math.log(1 / 3), rtol=1e-5)


def test_divergence_is_that_of_its_definition():
    full, refined = np.log([[0.5, 0.5], [0.9, 0.1]]), np.log([[0.9, 0.1], [0.9, 0.1]])
    expected = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    np.testing.assert_allclose(divergence(full, refined), [expected, 0], atol=1e-12)


def test_divergence_is_never_below_zero():
    rows = log_softmax(np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32))
    assert (divergence(rows, rows + 1e-9) >= 0).all()


def test_a_threshold_may_miss_one_bad_case_of_twenty():
    good = [0.0, 0.01, -0.2]
    bad = [0.1, *range(1, 20)]
    assert separating(bad, good) == (0.01, 1)


def test_where_none_separates_the_bounds_cross():
    above, below = separating([0.1, 0.2], [0.5])
    assert above > below


def test_without_bad_cases_there_is_no_upper_bound():
    assert math.isnan(separating([], [0.1])[1])
