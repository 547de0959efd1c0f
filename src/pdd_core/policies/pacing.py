"""Built-in pacing: a fixed rate.

A pacer decides *when* the next token may be shown, never *which*. The token loop calls it directly, once per
token; the hook ``pdd_pace`` only makes it, once per request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.hookspecs import Pacer, hookimpl

if TYPE_CHECKING:
    from pdd_core.hookspecs import PaceTarget


class FixedRate:
    """At most `rate` tokens per second. A late token restarts the clock: no burst after a stall."""

    def __init__(self, rate: float) -> None:
        self._gap = 1.0 / rate
        self._next: float | None = None

    def due(self, now: float, *, buffered: int, complete: bool, ready_in: float | None) -> float:  # noqa: ARG002
        """Return the next slot of the fixed grid, or `now` if that has passed."""
        slot = now if self._next is None else max(now, self._next)
        self._next = slot + self._gap
        return slot


class FixedRatePacing:
    """Built-in implementation of ``pdd_pace``."""

    @hookimpl(trylast=True)
    def pdd_pace(self, target: PaceTarget) -> Pacer:
        """Return a pacer at the user's target rate."""
        return FixedRate(target.rate)
