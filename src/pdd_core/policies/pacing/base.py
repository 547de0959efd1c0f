"""What the paced built-ins share: the first token at once, a grid that timers cannot wear down, the flush."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdd_core.hookspecs import PaceTarget


class SteadyPacer:
    """Shows a token one gap after the one before it; a subclass says how long the gap is.

    A late token restarts the clock: no burst after a stall.
    """

    def __init__(self, target: PaceTarget) -> None:
        self.least = 1.0 / target.rate
        """Seconds, the shortest gap before the answer is complete."""
        self._flush_within = target.flush_within
        self._flush_by: float | None = None
        self._shown = 0
        self._start = 0.0
        self._slot = -math.inf
        self._held = False
        self.before: float | None = None
        """Seconds that the token before was held back, from the one before it; None if it was not held."""

    def due(
        self,
        now: float,
        *,
        shown: int,
        shown_at: float | None,
        buffered: int,
        complete: bool,
        idle: float,
        **outlook: Any,
    ) -> float:
        """Return one gap after the token before, or `now` if that has passed. See `pdd_core.hookspecs.Pacer`."""
        if shown != self._shown:
            self._commit(shown, now if shown_at is None else shown_at)
        gap = self.gap(now, since=now - self._start, shown=shown, buffered=buffered, idle=idle, **outlook)
        if complete:
            gap = self._flush_gap(now, buffered)
        self._slot = now if shown == 0 else max(now, self._start + gap)
        self._held = self._held or self._slot > now
        return self._slot

    def gap(self, now: float, *, since: float, shown: int, buffered: int, idle: float, **outlook: Any) -> float:
        """Return the seconds between the token before and the next, at least `least`.

        Args:
            now: seconds since the request began.
            since: seconds since the token before.
            shown: tokens shown.
            buffered: tokens at hand, >= 1.
            idle: seconds since the last token arrived.
            outlook: the other arguments of `Pacer.due`.
        """
        raise NotImplementedError

    def _commit(self, shown: int, shown_at: float) -> None:
        """Record that the token asked about has been shown."""
        self.before = self._slot - self._start if self._held else None
        late = shown_at - self._slot
        # A timer that overshoots must not slow the answer down: the grid stays where it was planned.
        self._start = self._slot if 0 <= late <= self.least / 2 else shown_at
        self._shown = shown
        self._held = False

    def _flush_gap(self, now: float, buffered: int) -> float:
        if self._flush_by is None:
            self._flush_by = now + self._flush_within
        return min(self.least, (self._flush_by - self._start) / buffered)
