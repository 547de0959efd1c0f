"""The time that steps take: while nothing changes, each takes a little longer than the one before."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_core.planner.profiles import MeasuredCloud

_ENDLESS = 1 << 62


def series(first: float, slope: float, steps: int) -> float:
    """Return the sum of `steps` numbers that begin with `first` and grow by `slope`."""
    return steps * first + slope * (steps * (steps - 1) / 2)


def steps_until(wanted: float, first: float, slope: float) -> int:
    """Return the smallest number of steps, at least one, whose `series` reaches `wanted`."""
    if wanted <= first:
        return 1
    if slope > 0:
        half, rest = slope / 2, first - slope / 2
        guess = (math.sqrt(rest * rest + 4 * half * wanted) - rest) / slope
    elif first:
        guess = wanted / first
    else:
        return _ENDLESS
    steps = max(1, math.ceil(guess))
    while steps > 1 and series(first, slope, steps - 1) >= wanted:
        steps -= 1
    while series(first, slope, steps) < wanted:
        steps += 1
    return steps


class StepClock:
    """The time of one instance, and what its next step depends on. Times in seconds."""

    __slots__ = ("base_s", "busy", "context", "now", "per_sequence_s", "per_token_s", "step")

    def __init__(self, cloud: MeasuredCloud) -> None:
        self.base_s, self.per_sequence_s, self.per_token_s = (
            cloud.base_s,
            cloud.per_sequence_s,
            cloud.per_context_token_s,
        )
        self.now = 0.0
        self.busy = 0.0
        """Of that time, what steps took."""
        self.step = 0
        """Counts steps; every decoding sequence makes one token in each."""
        self.context = 0
        """Tokens in the KV cache of the sequences that decode."""

    def steps_before(self, until: float, decoding: int, most: int) -> int:
        """Return how many steps without prefill begin before `until`, at least one and at most `most`."""
        if until == math.inf:
            return most
        first, slope = self._seconds(decoding)
        if series(first, slope, most) <= until - self.now:  # however far `until` is, they are not counted
            return most
        return min(most, steps_until(until - self.now, first, slope))

    def advance(self, steps: int, decoding: int, prefill_s: float = 0.0) -> None:
        """Let so many steps pass, in which `decoding` sequences make a token each; `prefill_s` comes on top."""
        first, slope = self._seconds(decoding)
        seconds = series(first, slope, steps) + prefill_s
        self.now += seconds
        self.busy += seconds
        self.step += steps
        self.context += steps * decoding

    def _seconds(self, decoding: int) -> tuple[float, float]:
        """Return how long a step takes without prefill, and how much longer each following one."""
        per_token = self.per_token_s
        slope = per_token * decoding
        return self.base_s + self.per_sequence_s * decoding + per_token * self.context + slope, slope
