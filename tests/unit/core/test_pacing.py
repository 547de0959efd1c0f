"""What every built-in pacing keeps, and what each promises."""

import math

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st
from pacing_world import World, gaps, shortest_longest_gap

from pdd_core.errors import ConfigurationError
from pdd_core.hookspecs import PaceRequest, PaceTarget
from pdd_core.plugins import Policies
from pdd_core.policies.pacing import BUILT_IN, Ewma, FixedRate, ReadingSpeedPacing

PACED = [name for name in BUILT_IN if name != "unlimited"]

seconds = st.floats(0, 20, allow_subnormal=False)
estimates = st.fixed_dictionaries(
    {
        "cloud_left": st.none() | st.integers(0, 100),
        "cloud_step": st.none() | st.floats(0, 3, allow_subnormal=False),
        "ready_in": st.none() | st.just(0.0) | seconds,
        "device_step": st.none() | st.floats(0, 3, allow_subnormal=False),
    }
)
targets = st.builds(PaceTarget, rate=st.floats(0.5, 100), max_gap=st.floats(0.05, 3), flush_within=st.floats(0, 2))
arrivals = st.lists(st.just(0.0) | st.floats(0.01, 5), min_size=1, max_size=20).map(
    lambda steps: [sum(steps[: index + 1]) for index in range(len(steps))]
)


@st.composite
def worlds(draw):
    """Any arrivals, with estimates that have nothing to do with them."""
    said = draw(st.lists(estimates, min_size=1, max_size=4))
    times = draw(arrivals)
    return World(
        times,
        end=times[-1] + draw(st.just(0.0) | st.floats(0, 3)),
        changes=draw(st.lists(st.floats(0, 30), max_size=4)),
        outlook=lambda now, received: said[(received + int(now * 10)) % len(said)],
    )


def make(name, target, max_tokens=100):
    policies = Policies({name: BUILT_IN[name]()}, allow=[], strict=True)
    request = PaceRequest(num_prompt_tokens=10, max_tokens=max_tokens)
    return policies.first_result("pdd_pace", lambda pacer: hasattr(pacer, "due"), request=request, target=target)[
        0
    ]


@pytest.mark.parametrize("name", BUILT_IN)
@examples(40)
@given(world=worlds(), target=targets)
def test_every_token_is_shown_once_in_order_and_the_first_one_undelayed(name, world, target):
    shown = world.show(make(name, target))
    assert len(shown) == len(world.arrivals)
    assert shown == sorted(shown)
    assert shown[0] == world.arrivals[0]
    assert all(at >= arrived for at, arrived in zip(shown, world.arrivals, strict=True))


@pytest.mark.parametrize("name", PACED)
@examples(40)
@given(world=worlds(), target=targets)
def test_no_token_comes_faster_than_the_rate_before_the_answer_is_complete(name, world, target):
    shown = world.show(make(name, target))
    for gap, at in zip(gaps(shown), shown[1:], strict=True):
        assert gap >= 1 / target.rate - 1e-9 or at >= world.end


@pytest.mark.parametrize("name", [name for name in PACED if name != "reading"])
@examples(40)
@given(world=worlds(), target=targets)
def test_a_token_at_hand_waits_no_longer_than_the_gap_may_be_stretched(name, world, target):
    shown = world.show(make(name, target))
    stretch = max(target.max_gap, 1 / target.rate)
    for before, arrived, at in zip(shown, world.arrivals[1:], shown[1:], strict=False):
        assert at <= max(arrived, before + stretch) + 1e-9


@pytest.mark.parametrize("name", BUILT_IN)
@examples(40)
@given(world=worlds(), target=targets)
def test_a_finished_answer_is_shown_within_the_bound(name, world, target):
    assert world.show(make(name, target))[-1] <= world.end + target.flush_within + 1e-9


@pytest.mark.parametrize("name", BUILT_IN)
@examples(40)
@given(world=worlds(), target=targets)
def test_asking_twice_changes_nothing(name, world, target):
    class Twice:
        def __init__(self):
            self.pacer = make(name, target)

        def due(self, now, **state):
            first = self.pacer.due(now, **state)
            assert self.pacer.due(now, **state) == first
            return first

    assert world.show(Twice()) == world.show(make(name, target))


@pytest.mark.parametrize("name", BUILT_IN)
@examples(40)
@given(world=worlds())
def test_an_unlimited_rate_passes_tokens_through(name, world):
    assert world.show(make(name, PaceTarget(math.inf))) == world.arrivals


@examples(40)
@given(world=worlds(), target=targets)
def test_unlimited_passes_tokens_through_at_any_rate(world, target):
    assert world.show(make("unlimited", target)) == world.arrivals


@pytest.mark.parametrize("name", PACED)
def test_a_flush_is_even_and_never_slower_than_the_rate(name):
    world = World([0.0] * 30, end=0.35)
    shown = world.show(make(name, PaceTarget(rate=10.0)))
    before, after = [at for at in shown if at < 0.35], [at for at in shown if at >= 0.35]
    assert max(gaps(after)) == pytest.approx(min(gaps(after)))
    assert after[-1] == pytest.approx(0.85)
    assert after[0] - before[-1] <= 0.1 + 1e-9 if name != "reading" else after[0] - before[-1] < 0.35
    slow = World([0.0, 0.0, 0.0], end=0.0).show(make(name, PaceTarget(rate=10.0, flush_within=math.inf)))
    assert max(gaps(slow)) == pytest.approx(0.1 if name != "reading" else 1 / ReadingSpeedPacing().rate)


@pytest.mark.parametrize("name", PACED)
@examples(25)
@given(overshoot=st.floats(0, 0.049))
def test_a_timer_that_overshoots_does_not_slow_the_answer_down(name, overshoot):
    world = World([0.0] * 40, end=100.0)
    least = gaps(world.show(make(name, PaceTarget(rate=10.0))))[0]
    assert world.show(make(name, PaceTarget(rate=10.0)), overshoot=overshoot)[-1] <= least * 39 + overshoot + 1e-9


@given(arrivals, st.floats(1, 100), st.data())
def test_no_schedule_beats_the_offline_optimum_and_one_reaches_it(times, rate, data):
    best = shortest_longest_gap(times, 1 / rate)
    closed_form = [(at - times[0]) / index for index, at in enumerate(times) if index]
    assert best == pytest.approx(max([1 / rate, *closed_form]))
    shown = [times[0]]
    for arrived in times[1:]:
        shown.append(max(arrived, shown[-1] + 1 / rate) + data.draw(st.just(0.0) | st.floats(0, 2)))
    assert len(times) == 1 or max(gaps(shown)) >= best * (1 - 1e-9)


@given(arrivals, st.floats(1, 100))
def test_a_fixed_rate_keeps_its_gap_whenever_that_is_possible(times, rate):
    shown = World(times).show(FixedRate(PaceTarget(rate)))
    if shortest_longest_gap(times, 1 / rate) == 1 / rate:
        assert max(gaps(shown), default=0.0) <= 1 / rate + 1e-9


def test_a_fixed_rate_does_not_soften_a_stall():
    times = [0.0] * 5 + [2.0]
    shown = World(times).show(FixedRate(PaceTarget(rate=10.0)))
    assert max(gaps(shown)) == pytest.approx(1.6)
    assert shortest_longest_gap(times, 0.1) == pytest.approx(0.4)


@given(arrivals, targets)
def test_ewma_has_no_longer_gap_than_the_arrivals_have(times, target):
    shown = World(times).show(Ewma(target))
    assert max(gaps(shown), default=0.0) <= max([1 / target.rate, *gaps(times)]) + 1e-9


def test_ewma_irons_out_jitter():
    times = [0.2 * index + (0.1 if index % 2 else 0.0) for index in range(40)]
    late = gaps(World(times).show(Ewma(PaceTarget(rate=20.0))))[20:-3]
    assert (max(gaps(times)), min(gaps(times))) == pytest.approx((0.3, 0.1))
    assert max(late) - min(late) < 0.06


def test_ewma_works_a_backlog_off():
    world = World([0.5 * index for index in range(8)] + [3.5] * 30, end=60.0)
    shown = world.show(Ewma(PaceTarget(rate=20.0)))
    assert shown[-1] < 3.5 + 5.0
    assert max(gaps(shown)[8:20]) <= 0.06


def test_ewma_forgets_a_burst_within_some_tokens():
    times = [0.0] * 10 + [0.3 * index for index in range(1, 40)]
    late = gaps(World(times).show(Ewma(PaceTarget(rate=20.0))))[-15:-5]
    assert late == pytest.approx([0.3] * len(late), rel=0.1)


def test_reading_speed_is_the_readers_where_the_target_is_not_slower():
    world = World([0.0] * 10, end=60.0)
    pacing = ReadingSpeedPacing(words_per_minute=225)
    assert pacing.rate == pytest.approx(5.0)
    assert gaps(world.show(pacing.pdd_pace(PaceTarget(rate=12.0)))) == pytest.approx([0.2] * 9)
    assert gaps(world.show(pacing.pdd_pace(PaceTarget(rate=2.0)))) == pytest.approx([0.5] * 9)
    assert ReadingSpeedPacing().rate == pytest.approx(5.29, abs=0.01)


@pytest.mark.parametrize("speed", [0, -1, math.nan, math.inf])
def test_a_reading_speed_that_is_none_is_refused(speed):
    with pytest.raises(ConfigurationError, match="words_per_minute"):
        ReadingSpeedPacing(speed)


@pytest.mark.parametrize(
    ("field", "value"),
    [("rate", 0), ("rate", math.nan), ("max_gap", 0), ("max_gap", math.nan), ("flush_within", -1)],
)
def test_a_target_that_cannot_be_is_refused(field, value):
    with pytest.raises(ConfigurationError, match=field):
        PaceTarget(**{"rate": 10.0, field: value})


@pytest.mark.parametrize("name", PACED)
def test_the_hook_makes_a_pacer_per_request(name):
    policies = Policies({name: BUILT_IN[name]()}, allow=[])
    arguments = {"request": PaceRequest(10, 10), "target": PaceTarget(rate=2.0)}
    first, by = policies.first_result("pdd_pace", lambda pacer: hasattr(pacer, "due"), **arguments)
    second, _ = policies.first_result("pdd_pace", lambda pacer: hasattr(pacer, "due"), **arguments)
    assert by == name
    assert first is not second
