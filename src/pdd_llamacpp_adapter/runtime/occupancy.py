"""What other answers leave of the device: how long a new one waits for a slot, and how fast it is made then."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from pdd_core.planner.types import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pdd_core.planner.types import DeviceState
    from pdd_llamacpp_adapter.engine.sharing import Sharing
    from pdd_llamacpp_adapter.engine.speed import WorkLeft

_BUSY_SD = 0.5
"""Relative deviation of the time for which the device will be busy: answers end when they end."""


def beside(
    device: DeviceState, busy: Sequence[WorkLeft], sharing: Sharing, length: Callable[[int], float]
) -> DeviceState:
    """Return `device`, which is as fast as by itself, as a new answer will find it.

    Prompts are read in turns. Answers are decoded in the same batches, each slower for every other one. Those in
    the slots end one after the other, about evenly.

    Args:
        device: the device without other answers.
        busy: what it has to do for each of them, those that wait included.
        sharing: how many answers it makes at the same time, and how much they slow each other down.
        length: tells how long an answer gets, in tokens, by the length of its prompt.
    """
    alone = sum(
        left.to_read / device.prefill_tps.mean
        + max(0.0, length(left.prompt_tokens) - left.made) / device.decode_tps.mean
        for left in busy
    )
    slots, answers = sharing.slots, len(busy)
    waits_for = max(0, answers - slots + 1)
    wait = alone * sharing.slowdown(slots) / slots * waits_for / answers if waits_for else 0.0
    others = min(answers, slots - 1)
    reading = min(sum(left.to_read > 0 for left in busy), others)
    return replace(
        device,
        prefill_tps=_slower(device.prefill_tps, 1 + reading),
        decode_tps=_slower(device.decode_tps, sharing.slowdown(1 + others)),
        wait_s=Estimate(wait, _BUSY_SD * wait),
    )


def _slower(rate: Estimate, times: float) -> Estimate:
    return rate if times == 1 else replace(rate, mean=rate.mean / times, sd=rate.sd / times)
