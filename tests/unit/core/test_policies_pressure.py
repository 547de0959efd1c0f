"""The gauge, over loads that come and go: monotone, and without flapping."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.hookspecs import CloudLoad
from pdd_core.policies.pressure import PressureGauge, PressureSettings, utilisation

SETTINGS = PressureSettings(levels=(0.8, 0.9, 1.0), hysteresis=0.15, relax_s=1.0, patience_s=2.0)
LOAD = CloudLoad(running=0, waiting=0, kv_cache_usage=0.0, capacity=100)
USES = st.integers(0, 150).map(lambda percent: percent / 100)
STEPS = st.floats(0.001, 0.7)


def used(share):
    return replace(LOAD, kv_cache_usage=share)


@pytest.mark.parametrize(
    ("load", "share"),
    [
        (replace(LOAD, running=40, kv_cache_usage=0.1), 0.4),
        (replace(LOAD, running=100, waiting=30), 1.3),
        (replace(LOAD, running=5, kv_cache_usage=0.7), 0.7),
        (replace(LOAD, running=5, waiting=1, waited_s=1.0), 0.5),
        (replace(LOAD, running=5, capacity=0), 0.0),
    ],
)
def test_the_scarcest_resource_counts(load, share):
    assert utilisation(load, 2.0) == share


def test_it_rises_at_once_and_falls_one_level_after_another():
    gauge = PressureGauge(SETTINGS)
    assert gauge.observe(used(1.2), 0.0)
    assert (gauge.level, gauge.pressure) == (3, 1.0)
    seen = [(gauge.observe(used(0.1), now), gauge.level) for now in (0.5, 1.4, 1.5, 2.4, 2.5, 3.5, 9.0)]
    assert seen == [(False, 3), (False, 3), (True, 2), (False, 2), (True, 1), (True, 0), (False, 0)]


def test_a_moment_of_load_starts_the_wait_anew():
    gauge = PressureGauge(SETTINGS)
    gauge.observe(used(0.85), 0.0)
    for now, share in ((0.25, 0.1), (0.75, 0.1), (1.0, 0.7), (1.25, 0.1), (2.0, 0.1)):
        assert not gauge.observe(used(share), now)
    assert gauge.observe(used(0.1), 2.25)


def test_after_a_pause_only_the_load_of_now_counts():
    gauge = PressureGauge(SETTINGS)
    gauge.observe(used(1.2), 0.0)
    gauge.restart(used(0.2))
    assert gauge.level == 0
    gauge.restart(used(0.95))
    assert gauge.level == 2


@given(level=st.integers(1, 3), shares=st.lists(st.floats(0, 1), min_size=1, max_size=60), step=STEPS)
def test_a_load_that_swings_within_the_band_changes_nothing(level, shares, step):
    gauge = PressureGauge(SETTINGS)
    begins = SETTINGS.levels[level - 1]
    gauge.observe(used(begins), 0.0)
    lowest = begins - SETTINGS.hysteresis
    highest = SETTINGS.levels[level] - 1e-9 if level < 3 else 9.0
    for number, share in enumerate(shares):
        assert not gauge.observe(used(lowest + share * (highest - lowest)), number * step)
    assert gauge.level == level


@given(loads=st.lists(st.tuples(USES, USES, STEPS), min_size=1, max_size=80))
def test_a_greater_load_never_means_a_lower_level(loads):
    lighter, heavier, now = PressureGauge(SETTINGS), PressureGauge(SETTINGS), 0.0
    for one, other, step in loads:
        now += step
        lighter.observe(used(min(one, other)), now)
        heavier.observe(used(max(one, other)), now)
        assert lighter.level <= heavier.level


@given(loads=st.lists(st.tuples(USES, STEPS), min_size=1, max_size=200))
def test_levels_change_rarely_whatever_the_load_does(loads):
    gauge, now, falls, rises = PressureGauge(SETTINGS), 0.0, 0, 0
    for share, step in loads:
        now += step
        before = gauge.level
        changed = gauge.observe(used(share), now)
        assert changed == (gauge.level != before)
        assert gauge.level >= before - 1
        falls += gauge.level < before
        rises += gauge.level > before
    assert falls <= now / SETTINGS.relax_s
    assert rises <= falls + len(SETTINGS.levels)


@given(share=st.floats(0, 0.6), steps=st.lists(STEPS, min_size=20, max_size=40))
def test_an_idle_server_is_relaxed_after_one_wait_per_level(share, steps):
    gauge, now = PressureGauge(SETTINGS), 0.0
    gauge.observe(used(1.5), now)
    for step in steps:
        now += step
        gauge.observe(used(share), now)
    within = len(SETTINGS.levels) * (SETTINGS.relax_s + max(steps)) + steps[0]
    assert gauge.level == 0 or now < within
