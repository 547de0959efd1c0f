"""The rate at which tokens arrive, smoothed."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pdd_core.hookspecs import Pacer, hookimpl
from pdd_core.policies.pacing.base import SteadyPacer
from pdd_core.policies.pacing.unlimited import Unlimited

if TYPE_CHECKING:
    from pdd_core.hookspecs import PaceTarget

WEIGHT = 1 / 8
"""Of a new measurement in the average, as in TCP's smoothed round-trip time (RFC 6298, section 2)."""
LAG = 1.0
"""Seconds in which a backlog is worked off, unless the target rate forbids it."""


class Ewma(SteadyPacer):
    """Follows the exponentially weighted mean time between arrivals.

    Needs no estimate of anybody's, and irons out jitter. It cannot see a stall coming, but makes none longer: its
    longest gap is at most the longest between two arrivals, or 1 / rate.
    """

    def __init__(self, target: PaceTarget) -> None:
        super().__init__(target)
        self._max_gap = max(self.least, target.max_gap)
        self._mean: float | None = None
        self._arrived = 0
        self._arrived_at = 0.0

    def gap(
        self,
        now: float,
        *,
        since: float,  # noqa: ARG002
        shown: int,
        buffered: int,
        idle: float,
        **_: Any,
    ) -> float:
        """Return the mean time between arrivals within the bounds, shorter while there is a backlog."""
        self._observe(shown + buffered, now - idle)
        mean = self.least if self._mean is None else self._mean
        return max(self.least, min(mean, self._max_gap, LAG / buffered))

    def _observe(self, arrived: int, at: float) -> None:
        new = arrived - self._arrived
        if new and self._arrived:
            step = (at - self._arrived_at) / new
            self._mean = step if self._mean is None else step + (1 - WEIGHT) ** new * (self._mean - step)
        self._arrived, self._arrived_at = arrived, at


class EwmaPacing:
    """Built-in implementation of ``pdd_pace``."""

    @hookimpl(trylast=True)
    def pdd_pace(self, target: PaceTarget) -> Pacer:
        """Return a pacer that follows the arrivals of one answer."""
        return Unlimited() if math.isinf(target.rate) else Ewma(target)
