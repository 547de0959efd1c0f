"""When a late device is helped out: before the answer, slowed down to wait for it, looks like a stall."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.patience import Patience
from pdd_core.policies.pacing.adaptive import forced_gap
from pdd_core.qoe import STALL_GAPS
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.conductor import Conductor
from pdd_llamacpp_adapter.session.outcome import Mode

NO_TIME = Patience(late_s=0.0)


def late(*, ready_in: float, buffered: int, rate: float, patience: Patience = NO_TIME) -> bool:
    """Whether the conductor would ask the cloud for more."""
    answer = SimpleNamespace(device_able=True, caught_up=False, cloud_running=False, owner=Source.CLOUD)
    live = SimpleNamespace(answer=answer, buffered=buffered, now=lambda: 0.0)
    device = SimpleNamespace(ready_in=lambda: ready_in)
    options = SimpleNamespace(cloud=None, mode=Mode.HANDOFF, rate=rate, patience=patience)
    request = AnswerRequest(prompt_token_ids=[1], max_tokens=1)
    conductor = Conductor(SimpleNamespace(live=live, request=request, options=options), tasks=None, device=device)
    return conductor._device_late()


def gap(*, ready_in: float, buffered: int) -> float:
    """What the speed controller then has to stretch gaps to."""
    return forced_gap(
        0.0, 0.0, buffered, 50, cloud_left=0, cloud_step=None, ready_in=ready_in, device_step=0.0, idle=0.0
    )


@given(ready_in=st.floats(0.01, 100), buffered=st.integers(0, 300), rate=st.floats(1, 50))
def test_who_is_not_helped_out_needs_no_gap_that_is_a_stall(ready_in: float, buffered: int, rate: float) -> None:
    if not late(ready_in=ready_in, buffered=buffered, rate=rate):
        assert gap(ready_in=ready_in, buffered=buffered) < STALL_GAPS / rate


def test_a_device_is_waited_for_as_long_as_asking_the_cloud_takes() -> None:
    patience = Patience(late_s=0.5)
    assert late(ready_in=0.7, buffered=4, rate=10.0)
    assert not late(ready_in=0.7, buffered=4, rate=10.0, patience=patience)


@pytest.mark.parametrize(("ready_in", "expected"), [(0.9, False), (1.2, False), (1.3, True)])
def test_gaps_are_stretched_a_little_first(ready_in: float, expected: bool) -> None:
    assert late(ready_in=ready_in, buffered=9, rate=10.0) is expected
