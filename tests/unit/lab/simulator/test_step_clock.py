import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_lab.simulator.step_clock import series, steps_until

seconds = st.floats(1e-6, 1.0)


@given(seconds, st.sampled_from([0.0, 1e-9, 1e-4, 0.3]), st.integers(1, 300))
def test_a_series_is_the_sum_of_its_steps(first, slope, steps):
    assert series(first, slope, steps) == pytest.approx(sum(first + slope * i for i in range(steps)))


@given(st.floats(0, 20.0), st.floats(1e-3, 1.0), st.sampled_from([0.0, 1e-9, 1e-4, 0.3]))
def test_it_is_the_first_step_that_reaches_the_time(wanted, first, slope):
    steps = steps_until(wanted, first, slope)
    assert series(first, slope, steps) >= wanted
    assert steps == 1 or series(first, slope, steps - 1) < wanted


def test_steps_that_take_no_time_never_reach_it():
    assert steps_until(1.0, 0.0, 0.0) > 10**18
