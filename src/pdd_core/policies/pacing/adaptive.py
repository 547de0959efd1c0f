"""The speed controller: as fast as the buffer and the time to catch-up allow, and no faster than the target."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pdd_core.hookspecs import Pacer, hookimpl
from pdd_core.policies.pacing.base import SteadyPacer
from pdd_core.policies.pacing.unlimited import Unlimited

if TYPE_CHECKING:
    from pdd_core.hookspecs import PaceRequest, PaceTarget

SPEED_UP = 0.75
"""A gap is at least this share of the one before it: after good news the answer speeds up over some tokens."""


class Adaptive(SteadyPacer):
    """Chooses the smallest gap that, kept up, meets every token that is forecast to come.

    Let the last token be shown at time 0 and the k-th after it arrive at a_k. Gaps of g never wait for a token if
    a_k <= k g for all k. The smallest such g, max a_k / k, is also the least that the longest gap can be. The
    cloud's tokens come in equal steps until the budget or the take-over ends them, then the device's do until
    `max_tokens`; over equal steps a_k / k is monotonic, so each side's first and last token decide.

    With a right forecast the longest gap is therefore that of the offline optimum, wherever this lies between
    1 / rate and `max_gap`. Without one no pacer can promise that: it would have to know whether the next token
    will be late, and whether the answer will end early (``tests/unit/core/test_pacing_adaptive.py`` shows both).
    """

    def __init__(self, request: PaceRequest, target: PaceTarget) -> None:
        super().__init__(target)
        self._max_tokens = request.max_tokens
        self._max_gap = max(self.least, target.max_gap)

    def gap(self, now: float, *, since: float, shown: int, buffered: int, idle: float, **outlook: Any) -> float:
        """Return the forecast's gap within the bounds, not much shorter than the last."""
        left = max(0, self._max_tokens - shown - buffered)
        forced = forced_gap(now, since, buffered, left, idle=idle, **outlook)
        gap = min(max(self.least, forced), self._max_gap)
        return gap if self.before is None else max(gap, SPEED_UP * self.before)


def forced_gap(
    now: float,
    since: float,
    buffered: int,
    left: int,
    *,
    cloud_left: int | None,
    cloud_step: float | None,
    ready_in: float | None,
    device_step: float | None,
    idle: float,
) -> float:
    """Return the smallest steady gap, in seconds, that never waits for a token of the forecast.

    Args:
        now: seconds since the request began.
        since: seconds since the last token was shown.
        buffered: tokens at hand.
        left: tokens that may follow them.
        cloud_left: see `Pacer.due`, like the following.
        cloud_step: None counts as no time at all.
        ready_in: None counts as `now`: the device needs as long again as it has had, if it is needed at all.
        device_step: None counts as no time at all.
        idle: seconds since the last token arrived.
    """
    cloud_step, device_step = cloud_step or 0.0, device_step or 0.0
    from_cloud = left if cloud_left is None else min(cloud_left, left)
    cloud_first = max(0.0, cloud_step - idle)
    if ready_in == 0:  # it has taken over, so the last token was its own
        from_cloud, device_first = 0, max(0.0, device_step - idle)
    elif ready_in is None:
        device_first = now if from_cloud < left else math.inf
    else:
        device_first = ready_in
    if device_first < cloud_first:
        from_cloud = 0
    elif device_first - cloud_first < cloud_step * from_cloud:  # the cloud's tokens count until the take-over
        from_cloud = min(from_cloud, 1 + math.floor((device_first - cloud_first) / cloud_step))
    gap = 0.0
    if from_cloud:
        last = cloud_first + cloud_step * (from_cloud - 1)
        gap = max((since + cloud_first) / (buffered + 1), (since + last) / (buffered + from_cloud))
    if from_device := left - from_cloud:
        last = device_first + device_step * (from_device - 1)
        gap = max(gap, (since + device_first) / (buffered + from_cloud + 1), (since + last) / (buffered + left))
    return gap


class AdaptivePacing:
    """Built-in implementation of ``pdd_pace``, the default."""

    @hookimpl(trylast=True)
    def pdd_pace(self, request: PaceRequest, target: PaceTarget) -> Pacer:
        """Return the speed controller of one answer."""
        return Unlimited() if math.isinf(target.rate) else Adaptive(request, target)
