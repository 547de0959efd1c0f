"""What other answers leave of the device."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.planner.types import DeviceState, Estimate
from pdd_llamacpp_adapter.engine.sharing import Sharing
from pdd_llamacpp_adapter.engine.speed import WorkLeft
from pdd_llamacpp_adapter.runtime.occupancy import beside

DEVICE = DeviceState(prefill_tps=Estimate(100.0, 10.0), decode_tps=Estimate(20.0, 2.0), n_ctx=4096)
READING, DECODING = WorkLeft(400, 400, 0), WorkLeft(400, 0, 60)
"""Each has 100 tokens to make in all."""


def found(busy, *, slots=4, together=2.0):
    return beside(DEVICE, busy, Sharing(slots, together), lambda _: 100.0)


def test_an_idle_device_is_as_fast_as_by_itself():
    assert found([]) == DEVICE


def test_a_device_with_one_slot_is_waited_for_and_then_is_all_the_answers_own():
    state = found([DECODING, READING], slots=1, together=1.0)
    assert state.wait_s.mean == pytest.approx(40 / 20 + 400 / 100 + 100 / 20)
    assert (state.prefill_tps, state.decode_tps) == (DEVICE.prefill_tps, DEVICE.decode_tps)


def test_a_free_slot_is_not_waited_for_but_shared():
    state = found([DECODING, READING, DECODING])
    assert state.wait_s == Estimate(0.0, 0.0)
    assert state.decode_tps == Estimate(10.0, 1.0), "four together take twice as long for a step"
    assert state.prefill_tps == Estimate(50.0, 5.0), "one other prompt is read in turns with it"


def test_the_first_slot_to_be_free_is_waited_for():
    full = found([DECODING] * 4)
    assert full.wait_s.mean == pytest.approx(4 * 2.0 * 2.0 / 4 / 4)
    assert found([DECODING] * 5).wait_s.mean > full.wait_s.mean
    assert full.decode_tps.mean == 10.0


@given(
    busy=st.lists(
        st.builds(WorkLeft, st.integers(1, 4000), st.integers(0, 4000), st.integers(0, 500)), max_size=12
    ),
    slots=st.integers(1, 8),
    together=st.floats(1.0, 8.0),
)
def test_others_never_make_it_faster(busy, slots, together):
    state = beside(DEVICE, busy, Sharing(slots, together), lambda _: 100.0)
    assert state.wait_s.mean >= 0
    assert 0 < state.prefill_tps.mean <= DEVICE.prefill_tps.mean
    assert 0 < state.decode_tps.mean <= DEVICE.decode_tps.mean
    more = beside(DEVICE, [*busy, DECODING], Sharing(slots, together), lambda _: 100.0)
    assert more.wait_s.mean >= state.wait_s.mean - 1e-9
    assert more.decode_tps.mean <= state.decode_tps.mean
