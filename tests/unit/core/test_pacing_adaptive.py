"""The speed controller against the offline optimum."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from pacing_world import World, gaps, handoff, shortest_longest_gap

from pdd_core.hookspecs import PaceRequest, PaceTarget
from pdd_core.policies.pacing import Adaptive

EPSILON = 1e-6
"""Relative; for sums of floats, nothing else."""

steps = st.just(0.0) | st.floats(0.01, 1)
rates = st.floats(1, 50)


@st.composite
def handoffs(draw):
    """Parameters of `handoff`. The device is never ready just when a token comes: rounding would decide."""
    cloud_step = draw(steps)
    ready_at = draw(st.floats(0.01, 20))
    assume(not cloud_step or 0.01 < ready_at / cloud_step % 1 < 0.99)
    return {
        "cloud": draw(st.integers(1, 60)),
        "cloud_step": cloud_step,
        "ready_at": ready_at,
        "device_step": draw(steps),
        "length": draw(st.integers(1, 120)),
    }


def adaptive(rate, max_tokens, **target):
    return Adaptive(PaceRequest(10, max_tokens), PaceTarget(rate, **target))


def longest(world, pacer):
    return max(gaps(world.show(pacer)), default=0.0)


@given(handoffs(), rates)
def test_with_a_right_forecast_the_longest_gap_is_the_offline_optimum(parameters, rate):
    world = handoff(**parameters)
    best = shortest_longest_gap(world.arrivals, 1 / rate)
    assert longest(world, adaptive(rate, parameters["length"], max_gap=100.0)) <= best * (1 + EPSILON)


@given(handoffs(), rates, st.floats(0.05, 3))
def test_a_gap_bound_is_kept_whenever_an_omniscient_pacer_could_keep_it(parameters, rate, max_gap):
    world = handoff(**parameters)
    shown = world.show(adaptive(rate, parameters["length"], max_gap=max_gap))
    stretch = max(max_gap, 1 / rate)
    best = shortest_longest_gap(world.arrivals, 1 / rate)
    if best <= stretch:
        assert max(gaps(shown), default=0.0) <= best * (1 + EPSILON)
    for before, arrived, at in zip(shown, world.arrivals[1:], shown[1:], strict=False):
        assert at <= max(arrived, before + stretch) + 1e-9


@given(handoffs(), rates, st.floats(0, 1))
def test_an_answer_that_ends_early_has_no_gap_beyond_the_forecasts_optimum(parameters, rate, share):
    """An end of sequence cannot be foreseen; what was planned for the longest answer still bounds the gaps."""
    whole = handoff(**parameters)
    kept = whole.arrivals[: 1 + int(share * (len(whole.arrivals) - 1))]
    early = World(kept, outlook=whole.outlook)
    best = shortest_longest_gap(whole.arrivals, 1 / rate)
    assert longest(early, adaptive(rate, parameters["length"], max_gap=100.0)) <= best * (1 + EPSILON)


@given(
    st.lists(st.just(0.0) | st.floats(0.01, 1), max_size=30),
    st.floats(0.1, 20),
    steps,
    st.integers(1, 60),
    rates,
    st.none() | st.floats(0.001, 1),
)
def test_once_the_cloud_is_done_the_rest_is_shown_as_well_as_can_be(cloud, wait, device_step, made, rate, guess):
    """However irregular the cloud was, and whatever was guessed of it: no gap after its end is longer than a gap
    before, or than the best that could still be done."""
    sent = [sum(cloud[:index]) for index in range(len(cloud) + 1)]
    over = sent[-1]
    ready_at = over + wait
    times = sent + [ready_at + device_step * index for index in range(made)]

    def outlook(now, received):
        mine = now >= ready_at
        return {
            "cloud_left": max(0, len(sent) - received),
            "cloud_step": guess,
            "ready_in": 0.0 if mine else ready_at - now,
            "device_step": device_step,
        }

    shown = World(times, outlook=outlook).show(adaptive(rate, len(times), max_gap=100.0))
    begun = sum(at <= over for at in shown)
    before, after = gaps(shown[:begun]), gaps(shown[begun - 1 :])
    still_best = shortest_longest_gap([shown[begun - 1], *(max(over, at) for at in times[begun:])], 1 / rate)
    assert max(after) <= max([still_best, over - shown[begun - 1], *before]) * (1 + EPSILON)


def test_nobody_can_foresee_that_a_token_will_be_late():
    """Two answers, the same until 0.2 s. Whenever the second token is shown, one of them gets a gap that is 1.5
    times the longest it needed. No online pacer is within 1.5 of the optimum where arrivals are not forecast.
    """
    least, prompt, late = 0.1, [0.0, 0.0, 0.2], [0.0, 0.0, 1.0]
    assert shortest_longest_gap(prompt, least) == pytest.approx(0.1)
    assert shortest_longest_gap(late, least) == pytest.approx(0.5)
    for second in (0.1 + 0.001 * step for step in range(900)):
        # up to 0.2 s the choice is the same for both; later, it is the first answer that has waited
        in_prompt = second / 0.1
        in_late = max(second, 1.0 - second) / 0.5
        assert in_prompt >= 1.5 or in_late >= 1.5


def test_nobody_can_foresee_that_an_answer_ends_early():
    """Two answers, the same until 1 s: one ends there, one goes on with a token a second, slower than the target.

    The first three gaps are chosen before that. Spending the buffer fast is right for the one, saving it for the
    other; whatever is chosen, one of them gets a gap that is 1.1 times the longest it needed.
    """
    least = 0.25
    short, long = [0.0] * 5 + [1.0], [0.0] * 5 + [float(second) for second in range(1, 17)]
    assert shortest_longest_gap(short, least) == pytest.approx(0.25)
    assert shortest_longest_gap(long, least) == pytest.approx(0.8)
    for third_at in (0.75 + 0.001 * step for step in range(1000)):
        in_short = third_at / 3 / 0.25
        in_long = shortest_longest_gap([third_at, *long[4:]], least) / 0.8
        assert in_short >= 1.1 or in_long >= 1.1


def test_the_buffer_lasts_until_the_device_is_ready():
    world = handoff(cloud=24, cloud_step=0.02, ready_at=6.0, device_step=0.05, length=60)
    shown = world.show(adaptive(12.0, 60))
    assert shown[:25] == pytest.approx([0.25 * index for index in range(25)], abs=1e-9)
    assert shown[24] == pytest.approx(6.0), "the device's first token comes just in time"


def test_the_target_rate_is_kept_where_there_is_time():
    world = handoff(cloud=24, cloud_step=0.02, ready_at=1.0, device_step=0.05, length=60)
    world.end = 100.0
    assert gaps(world.show(adaptive(12.0, 60))) == pytest.approx([1 / 12] * 59)


def test_a_slow_device_after_a_full_buffer_is_stretched_evenly_to_the_end():
    world = handoff(cloud=20, cloud_step=0.0, ready_at=0.5, device_step=0.2, length=60)
    world.end = 100.0
    assert gaps(world.show(adaptive(20.0, 60))) == pytest.approx([(0.5 + 39 * 0.2) / 59] * 59)


def test_a_device_that_is_ready_early_speeds_the_answer_up_smoothly():
    world = handoff(cloud=20, cloud_step=0.0, ready_at=2.0, device_step=0.02, length=60)
    right = world.outlook
    world.end, world.outlook = (
        100.0,
        lambda now, received: right(now, received) | ({"ready_in": 9.0 - now} if now < 2.0 else {}),
    )
    widths = gaps(world.show(adaptive(12.0, 60)))
    assert widths[0] == pytest.approx(9.0 / 20)
    assert widths[-1] == pytest.approx(1 / 12)
    assert all(later >= 0.75 * earlier - 1e-9 for earlier, later in pairwise(widths))
    assert all(later <= earlier + 1e-9 for earlier, later in pairwise(widths))


def test_tokens_that_piled_up_in_a_stall_come_at_the_target_rate():
    world = World([0.0, 5.0, *([5.0] * 20)], end=100.0)
    assert gaps(world.show(adaptive(10.0, 100)))[1:] == pytest.approx([0.1] * 20)


def test_a_device_without_an_estimate_is_taken_to_need_as_long_again():
    def outlook(now, received):
        return {"cloud_left": 0, "cloud_step": 0.01, "ready_in": None, "device_step": None}

    world = World([2.0] * 10 + [6.0] * 50, outlook=outlook)
    shown = world.show(adaptive(12.0, 60))
    early = [at for at in shown if at < 6.0]
    assert gaps(early)[0] == pytest.approx(2.0 / 10)
    assert gaps(early) == sorted(gaps(early)), "the longer it takes, the more is kept back"
    assert len(early) < 10, "something is left when the device is ready"


def test_a_cloud_that_makes_the_whole_answer_needs_no_device():
    def outlook(now, received):
        return {"cloud_left": 40 - received, "cloud_step": 0.05, "ready_in": None, "device_step": None}

    world = World([5.0 + 0.05 * index for index in range(40)], end=100.0, outlook=outlook)
    assert gaps(world.show(adaptive(10.0, 40))) == pytest.approx([0.1] * 39)


def test_a_cloud_slower_than_the_target_is_shown_at_its_own_pace():
    def outlook(now, received):
        return {"cloud_left": None, "cloud_step": 0.2, "ready_in": None, "device_step": None}

    jitter = [0.0, 0.03, -0.04, 0.05, 0.0, -0.05]
    times = [0.2 * index + jitter[index % 6] for index in range(60)]
    widths = gaps(World(times, outlook=outlook).show(adaptive(12.0, 1000)))
    assert max(gaps(times)) > 0.28
    assert max(widths[6:-1]) < 0.21


def test_no_stretch_goes_beyond_the_bound():
    world = handoff(cloud=3, cloud_step=0.0, ready_at=30.0, device_step=0.05, length=20)
    shown = world.show(adaptive(12.0, 20, max_gap=0.8))
    assert shown[:4] == pytest.approx([0.0, 0.8, 1.6, 30.0])
    slow = replace(PaceTarget(0.5), max_gap=0.8)
    assert World([0.0] * 3, end=9.0).show(Adaptive(PaceRequest(1, 3), slow))[1] == pytest.approx(2.0)


def test_a_huge_limit_on_the_answer_does_no_harm():
    world = handoff(cloud=24, cloud_step=0.02, ready_at=2.0, device_step=0.1, length=200)
    assert longest(world, adaptive(12.0, 10**9)) <= 0.1 + EPSILON
    assert math.isfinite(longest(world, adaptive(12.0, 1))), "more tokens than the limit said"
