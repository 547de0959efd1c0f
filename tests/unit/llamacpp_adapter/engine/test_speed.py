from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.device_profile import DEFAULT_CHUNK
from pdd_llamacpp_adapter.engine.speed import MAX_CHUNK, DeviceSpeed, Work
from pdd_llamacpp_adapter.session.arrivals import Arrivals


def test_nothing_is_claimed_before_anything_was_measured():
    speed = DeviceSpeed()
    assert speed.seconds(100) is None
    assert speed.chunk() == DEFAULT_CHUNK


def test_large_batches_tell_the_prefill_rate_and_single_tokens_the_step():
    speed = DeviceSpeed()
    speed.measured(100, 0.5)
    speed.measured(1, 0.02)
    speed.measured(8, 3.0)  # neither
    assert (speed.prefill_tps, speed.step_s) == (200.0, 0.02)
    assert speed.seconds(400) == 2.0
    assert speed.seconds(1) == 0.02, "a batch costs at least one step"
    assert speed.seconds(0) == 0.0
    assert speed.chunk(least=16) == 50
    assert speed.chunk(least=16, within=0.1) == 20
    assert speed.chunk() == DEFAULT_CHUNK, "smaller ones take longer for each token"


def test_one_hiccup_moves_the_estimate_by_less_than_a_third():
    speed = DeviceSpeed()
    speed.measured(64, 0.32)
    speed.measured(64, 64.0)
    assert 140 < speed.prefill_tps < 200


@given(st.lists(st.tuples(st.integers(1, 512), st.just(0.0) | st.floats(1e-6, 100)), min_size=1))
def test_chunks_stay_within_bounds_whatever_is_measured(batches):
    speed = DeviceSpeed()
    for tokens, seconds in batches:
        speed.measured(tokens, seconds)
        assert 64 <= speed.chunk() <= MAX_CHUNK
        assert 16 <= speed.chunk(least=16, within=0.1) <= speed.chunk()
        assert speed.seconds(10) is None or speed.seconds(10) > 0


def test_the_work_for_one_answer_is_told_apart_by_batch():
    work = Work()
    for tokens, seconds in ((64, 0.5), (32, 0.25), (8, 0.1), (1, 0.05), (1, 0.03)):
        work.add(tokens, seconds)
    assert (work.read_tokens, work.read_s) == (96, 0.75)
    assert (work.decoded_tokens, work.decoded_s) == (2, 0.08)


def test_the_arrivals_of_a_leg():
    arrivals = Arrivals()
    assert (arrivals.first_token_s, arrivals.step_s) == (None, None)
    arrivals.posted_at = 1.0
    for tokens, now in ((0, 1.1), (1, 1.5), (2, 1.6), (1, 1.7)):
        arrivals.came(tokens, now)
    assert arrivals.first_token_s == 0.5
    assert arrivals.step_s is None, "too few to tell"
    arrivals.came(1, 1.9)
    assert arrivals.step_s == pytest.approx(0.1)
