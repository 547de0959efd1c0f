"""Built-in pacing: a fixed rate.

A pacer decides *when* the next token may be shown, never *which*. The token loop calls it directly, once per
token; the hook ``pdd_pace`` only makes it, once per request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pdd_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from pdd_core.hookspecs import PaceTarget


class Pacer(Protocol):
    """Shows one answer. Not shared between answers."""

    def due(self, now: float, *, buffered: int, complete: bool, ready_in: float | None) -> float:
        """Return when to show the next token, in the clock of `now` (seconds). At or before `now` means at once.

        Called when a token is at hand; the first call of an answer must return `now` or earlier.

        Args:
            now: the current time.
            buffered: tokens at hand that have not been shown, >= 1.
            complete: True when no token will follow the buffered ones.
            ready_in: the device's own estimate of the seconds until it has caught up; 0 after the take-over,
                None while it has no estimate or takes no part.
        """


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
