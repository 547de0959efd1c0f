"""The number of threads: cores are counted once, and fewer threads are kept where they are faster."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.hardware.threads import candidates, fastest, physical_cores


def tried(most, seconds):
    seen = []

    def of(count):
        seen.append(count)
        return seconds(count)

    return fastest(most, of), seen


def test_an_idle_machine_keeps_the_number_asked_for_after_one_look_at_fewer():
    assert tried(8, lambda count: 1 / count) == (8, [8, 4])


def test_a_busy_machine_gets_fewer():
    assert tried(2, {2: 9.0, 1: 1.0}.get) == (1, [2, 1])
    assert tried(8, {8: 9.0, 4: 3.0, 2: 1.0, 1: 2.0}.get) == (2, [8, 4, 2, 1])


def test_near_ties_go_to_the_number_asked_for():
    assert tried(2, {2: 1.0, 1: 0.95}.get)[0] == 2


def test_one_thread_is_not_tried():
    assert tried(1, None) == (1, [])


def test_what_takes_too_long_to_be_tried_gives_way_to_what_does_not():
    assert tried(8, {8: math.inf, 4: math.inf, 2: 1.0, 1: 2.0}.get) == (2, [8, 4, 2, 1])


def test_where_nothing_is_fast_enough_to_be_tried_the_number_asked_for_stays():
    assert tried(8, lambda _: math.inf)[0] == 8


@given(most=st.integers(1, 256), seconds=st.dictionaries(st.integers(1, 256), st.floats(0.001, 10)))
def test_the_choice_is_a_candidate_and_never_clearly_slower_than_the_number_asked_for(most, seconds):
    def of(count):
        return seconds.get(count, 1.0)

    best = fastest(most, of)
    assert best in candidates(most)
    assert best == most or of(best) < of(most)


@pytest.mark.parametrize(("siblings", "cores"), [(("0\n", "1\n"), 2), (("0,1\n", "0,1\n"), 1)])
def test_two_cpus_of_one_core_count_once(tmp_path, monkeypatch, siblings, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1}, raising=False)
    for cpu, text in enumerate(siblings):
        folder = tmp_path / f"cpu{cpu}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(text)
    assert physical_cores(tmp_path) == cores


@pytest.mark.parametrize(("cpus", "cores"), [(4, 4), (16, 8)])
def test_where_nobody_tells_many_cpus_are_half_as_many_cores(tmp_path, monkeypatch, cpus, cores):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cpus)), raising=False)
    assert physical_cores(tmp_path) == cores
