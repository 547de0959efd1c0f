"""What plans come to: an exact model of one request at a time, for arrays of requests. No queue, no load.

The cloud's token k, from 1, arrives at ``ttft + (k - 1) * tpot`` and is due at ``ttft + (k - 1) * rhythm``: the
longest of ``1 / rate``, ``tpot`` and the device's expected step, as the default pacer shows an answer. The device
meanwhile reads the prompt and then what has arrived; it goes on from the token after the last that it received,
one decode step behind it. An answer is stalled if that first token of the device's comes later than it is due, or
than one step of its own after the last. A rhythm slower than the rate, and a device slower than expected, show in
the quality of experience, not in stalls.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.planner.cost import PREFILL_WEIGHT, decode_cost
from pdd_core.planner.types import Verdict
from pdd_lab.simulator.qoe_arrays import answer_qoe

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

VERDICTS = (Verdict.HANDOFF, Verdict.CLOUD_ONLY, Verdict.DEVICE_ONLY)
"""Verdicts by their code in arrays: 0, 1, 2."""
HANDOFF, CLOUD_ONLY, DEVICE_ONLY = range(3)
_NEVER = 1e15
"""Tokens: more than any answer has."""
_TOLERANCE_S = 1e-9
_UNCAPPED = 1 << 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Requests:
    """Arrays of shape (requests,), or numbers that hold for all of them."""

    prompt_tokens: ArrayLike
    output_tokens: ArrayLike
    """The length that the answer has if nobody cuts it short."""
    held_tokens: ArrayLike = 0
    """The beginning of the prompt that the device holds already."""


@dataclass(frozen=True, slots=True)
class Choices:
    """One policy's decisions for the requests of a trace; arrays of shape (requests,)."""

    verdict: NDArray[np.int8]
    """Codes as in `VERDICTS`."""
    decode_budget: NDArray[np.int64]
    """Of handoffs."""
    refine_ratio: NDArray[np.float64]
    kv: NDArray[np.bool_]
    """Whether the device loads cells of the cloud's KV cache."""

    def cloud_tokens(self, output_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what the cloud is asked to decode, where it has a part; at least 1."""
        capped = np.where(self.verdict == HANDOFF, self.decode_budget, _UNCAPPED)
        return np.asarray(np.minimum(output_tokens, np.maximum(capped, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What speeds turn out to be; arrays of shape (requests,), or numbers."""

    prefill_tps: ArrayLike
    decode_tps: ArrayLike
    ttft_s: ArrayLike
    """From the request to the arrival of the cloud's first token, round trip included."""
    tpot_s: ArrayLike
    rtt_s: ArrayLike
    rate: float
    """Tokens per second shown at most."""
    paced_tps: ArrayLike | None = None
    """The device's decode rate as a pacer expects it; None: as it turns out."""
    ttft_target_s: float = 0.5
    """When the ideal answer begins, for the quality of experience."""
    prefill_weight: float = PREFILL_WEIGHT
    """Token-seconds of one token that the cloud prefills."""
    closing_margin: float | None = None
    """Share of time to spare with which the device closes the cloud early, once what is at hand lasts until it is
    ready; None lets the cloud decode until the device has caught up."""
    cells_per_s: ArrayLike = 0.0
    """Cells of the cloud's KV cache that arrive per second, from a round trip after the first token on."""
    forecast_ratio: ArrayLike = 1.0
    """The device's forecast of its own time, over what it turns out to be."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcomes:
    """Arrays of shape (requests,)."""

    stalled: NDArray[np.bool_]
    handed_off: NDArray[np.bool_]
    """The device went on with what the cloud began."""
    cloud_decode_tokens: NDArray[np.float64]
    """Also those in vain: on their way, or made before the cloud heard that it should stop."""
    cloud_prefill_tokens: NDArray[np.float64]
    device_prefill_tokens: NDArray[np.float64]
    """Of the prompt, whether it was of use or not; what was not read by the end of the answer counts too."""
    kv_cells: NDArray[np.float64]
    """Cells of the cloud's KV cache that arrived before the prompt was done, or the answer ended."""
    cloud_cost: NDArray[np.float64]
    """Token-seconds, as in `pdd_core.planner.cost`."""
    ttft_s: NDArray[np.float64]
    lateness_s: NDArray[np.float64]
    """By how much the device's first token is late where `stalled`, else 0."""
    qoe: NDArray[np.float64]


def outcomes(
    requests: Requests,
    world: World,
    *,
    verdict: ArrayLike,
    decode_budget: ArrayLike,
    refine_ratio: ArrayLike = 1.0,
    kv: ArrayLike = False,
) -> Outcomes:
    """Return what becomes of `requests` under their plans.

    Args:
        requests: lengths.
        world: the true speeds.
        verdict: codes as in `VERDICTS`.
        decode_budget: N; looked at where the verdict is a handoff.
        refine_ratio: share of the prompt that the device reads, 1 for all.
        kv: whether the device loads cells; looked at where the verdict is a handoff.
    """
    prompt, output, held, verdict, budget, ratio = _arrays(
        requests.prompt_tokens, requests.output_tokens, requests.held_tokens, verdict, decode_budget, refine_ratio
    )
    prefill, decode, ttft, tpot, rtt, forecast, per_s = _arrays(
        world.prefill_tps,
        world.decode_tps,
        world.ttft_s,
        world.tpot_s,
        world.rtt_s,
        world.forecast_ratio,
        world.cells_per_s,
        shape=prompt.shape,
    )
    handoff, on_device = verdict == HANDOFF, verdict == DEVICE_ONLY
    step = 1.0 / decode
    rhythm = rhythm_s(world)
    fresh = np.maximum(prompt - held, 1.0)  # the last token is always processed: its logits begin the answer
    per_s = np.where(handoff & np.asarray(kv, dtype=np.bool_), per_s, 0.0)
    reading = reading_s(fresh, prefill, ratio=ratio, ttft_s=ttft)
    arrive = ttft + rtt
    loading = loading_s(fresh, prefill, cells_per_s=per_s, arrive_s=arrive)
    reading = np.where(per_s > 0, np.minimum(reading, arrive + loading), reading)

    sent = np.minimum(budget, output)
    # the device takes over where it has read all that arrived, and what is at hand lasts for its first step
    own = np.minimum(step, rhythm)  # who waits for no more than the device's rhythm does not wait for the handoff
    last = least_tokens((reading - ttft, tpot - 1.0 / prefill), (reading + own - ttft, rhythm - 1.0 / prefill))
    if world.closing_margin is not None:
        longer = forecast * (1.0 + world.closing_margin)  # and counts what is at hand as if shown at `rate`
        closes = least_tokens((longer * reading + step - ttft, 1.0 / world.rate - longer / prefill))
        last = np.minimum(last, closes)
    received = np.minimum(sent, last)
    decoded = np.minimum(sent, received + np.ceil(rtt / tpot))

    handed_off = handoff & (output > received)
    ready = np.maximum(reading + received / prefill, ttft + (received - 1.0) * tpot) + own
    late = np.where(handed_off, ready - (ttft + received * rhythm), 0.0)
    late = np.where(late > _TOLERANCE_S, late, 0.0)

    begins = np.where(on_device, reading_s(fresh, prefill, ratio=1.0, ttft_s=0.0) + step, ttft)
    in_cloud = np.where(on_device, 0.0, np.where(handoff, decoded, output))
    loaded = per_s * np.minimum(loading, np.maximum(ttft + output * rhythm - arrive, 0.0))
    before = np.where(on_device, 0.0, np.where(handed_off, received, output))
    return Outcomes(
        stalled=late > 0,
        handed_off=handed_off,
        cloud_decode_tokens=in_cloud,
        cloud_prefill_tokens=np.where(on_device, 0.0, prompt),
        device_prefill_tokens=np.where(
            verdict == CLOUD_ONLY, 0.0, np.where(handoff, fresh * ratio, fresh) - loaded
        ),
        kv_cells=loaded,
        cloud_cost=np.where(on_device, 0.0, world.prefill_weight * prompt)
        + decode_cost(prompt, in_cloud, in_cloud**2, tpot_s=tpot),
        ttft_s=begins,
        lateness_s=late,
        qoe=answer_qoe(
            output,
            first=before,
            ttft_s=begins,
            late_s=late,
            first_gap_s=np.where(handoff, rhythm, np.maximum(tpot, 1.0 / world.rate)),
            rest_gap_s=np.maximum(step, 1.0 / world.rate),
            rate=world.rate,
            ttft_target_s=world.ttft_target_s,
        ),
    )


def reading_s(
    fresh: ArrayLike, prefill_tps: ArrayLike, *, ratio: ArrayLike, ttft_s: ArrayLike
) -> NDArray[np.float64]:
    """Return the seconds until the device has read its prompt, refined where `ratio` is below 1.

    The refined prompt comes with the cloud's first token. Until then the device reads the whole one from its
    beginning, and of the rest only the share that is kept: ``ratio * F / p + (1 - ratio) * min(ttft, F / p)``.
    """
    whole = np.asarray(fresh) / np.asarray(prefill_tps)
    share = np.asarray(ratio)
    return np.asarray(share * whole + (1.0 - share) * np.minimum(ttft_s, whole))


def loading_s(
    fresh: ArrayLike, prefill_tps: ArrayLike, *, cells_per_s: ArrayLike, arrive_s: ArrayLike
) -> NDArray[np.float64]:
    """Return the seconds from the first cell's arrival until the prompt is done, from both its ends.

    Until then the device has read from the front: ``max(0, F - p arrive) / (p + s)``.
    """
    tps = np.asarray(prefill_tps)
    left = np.maximum(np.asarray(fresh) - tps * np.asarray(arrive_s), 0.0)
    return np.asarray(left / (tps + np.asarray(cells_per_s)))


def rhythm_s(world: World) -> NDArray[np.float64]:
    """Return the gap at which each answer that is handed off is shown."""
    paced = np.asarray(world.decode_tps if world.paced_tps is None else world.paced_tps, dtype=np.float64)
    return np.asarray(np.maximum(np.maximum(world.tpot_s, 1.0 / paced), 1.0 / world.rate))


def least_tokens(*needs: tuple[NDArray[np.float64], NDArray[np.float64]]) -> NDArray[np.float64]:
    """Return the least number of tokens, at least 1, that meets all `needs`: seconds, and the seconds per token.

    It is more than any answer has where no number does.

    A need is met from some number on where each token adds time, and up to some number where each takes time away:
    a device that reads more slowly than tokens arrive may have caught up at the first, and falls behind again.
    """
    begin: NDArray[np.float64] = np.asarray(1.0)
    end: NDArray[np.float64] = np.asarray(float(_NEVER))
    for seconds, per_token in needs:
        gains = per_token > 0
        with np.errstate(divide="ignore", invalid="ignore"):
            turn = seconds / per_token
        at_once = seconds <= per_token + _TOLERANCE_S
        begin = np.asarray(np.maximum(begin, np.where(gains & ~at_once, np.ceil(turn - _TOLERANCE_S), 1.0)))
        loses = np.where(per_token < 0, np.maximum(np.floor(turn + _TOLERANCE_S), 1.0), _NEVER)
        end = np.asarray(np.minimum(end, np.where(gains, _NEVER, np.where(at_once, loses, 0.0))))
    return np.asarray(np.where(begin <= end, begin, _NEVER))


def _arrays(*values: ArrayLike, shape: tuple[int, ...] = ()) -> list[NDArray[np.float64]]:
    """Return `values` as floats of one shape."""
    arrays = [np.asarray(value, dtype=np.float64) for value in values]
    whole = np.broadcast_shapes(shape, *(array.shape for array in arrays))
    return [np.broadcast_to(array, whole) for array in arrays]
