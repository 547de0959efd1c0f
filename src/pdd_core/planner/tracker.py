"""One positive quantity, followed from request to request: a speed, a round trip, a time to the first token.

Its logarithm is a level that drifts slowly, seen through noise: a Kalman filter, whose noise is learnt as well.
Two things are added, since devices throttle and networks change. An observation far off counts for less, it may be
a hiccup. If several in a row are off to the same side (CUSUM, Page 1954), the level has jumped: the filter forgets
what it knew, and follows the next ones at once. In between, the estimate says that it is in doubt where the value
may have fallen: a device that is slower, or a first token that comes sooner and leaves less time, needs head-room.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pdd_core.planner.types import Estimate

if TYPE_CHECKING:
    from collections.abc import Mapping

UNKNOWN_SD = math.log(4.0)
"""Of the logarithm of a first guess: off by four is one standard deviation."""
_DRIFT_SD = 0.03
"""Of the logarithm, from one request to the next."""
_AWAY_SD = 0.2
"""The same over the time in which nothing was seen, between two runs of the program."""
_CLIPPED_AT = 3.0
"""Standard deviations beyond which an observation counts no more."""
_ALLOWED = 0.75
"""Standard deviations by which an observation may be off before it speaks for a change."""
_CHANGED_AT = 3.0
"""Sum of what is beyond `_ALLOWED`, to one side, that means a change."""
_CHANGED_AT_ONCE = 2.0
"""The same where one observation far off is enough."""
_AGREES = 0.5
"""Share of an observation far off that the one before it is off as well, where both mean a change."""
_LEAST_NOISE, _MOST_NOISE = 0.03, 1.0
"""Bounds of the noise's standard deviation, of the logarithm."""
_FARTHEST = math.log(1000.0)
"""A value that is farther off says no more than one that is as far."""
_BOUND = 50.0
"""Of the logarithm of any quantity."""
_MOST_VARIANCE = (2 * UNKNOWN_SD) ** 2
"""Of the logarithm: the mean of a wider log-normal distribution is too far out to plan by."""
_NOISE_COUNTS = 8.0
"""Observations that the first guess of the noise is worth."""
_NOISE_MEMORY = 40.0
"""Observations after which the noise forgets."""


class Tracker:
    """The estimate of one quantity.

    Args:
        guess: its value before the first observation.
        noise: relative standard deviation from request to request, a guess.
        sd: how far off the guess may be, standard deviation of the logarithm.
        at_once: whether a single observation far off is a change and no hiccup, as one is that took seconds.
    """

    __slots__ = ("_at_once", "_counts", "_down", "_level", "_noise", "_off", "_up", "_variance")

    def __init__(self, guess: float, *, noise: float = 0.1, sd: float = UNKNOWN_SD, at_once: bool = False) -> None:
        self._at_once = at_once
        self._level = max(-_BOUND, min(_BOUND, math.log(guess)))
        self._variance = sd * sd
        self._noise = noise * noise
        self._counts = _NOISE_COUNTS
        self._up = self._down = 0.0
        self._off = 0.0

    def observe(self, value: float) -> None:
        """Learn from one observation; ignore what is not positive and finite."""
        if not 0 < value < math.inf:
            return
        self._variance += _DRIFT_SD * _DRIFT_SD
        before, off = self._off, max(-_FARTHEST, min(_FARTHEST, math.log(value) - self._level))
        self._off = off
        spread = math.sqrt(self._variance + self._noise)
        beyond = max(-_CLIPPED_AT, min(_CLIPPED_AT, off / spread))
        self._up = max(0.0, self._up + beyond - _ALLOWED)
        self._down = max(0.0, self._down - beyond - _ALLOWED)
        # one alone is a hiccup, even where others were a little off before
        agreed = self._at_once or abs(beyond) < _CLIPPED_AT or before / off >= _AGREES
        if agreed and max(self._up, self._down) >= self._changed_at:
            self._variance = max(self._variance, off * off)
            self._up = self._down = 0.0
        else:
            self._up, self._down = min(self._up, self._changed_at), min(self._down, self._changed_at)
            self._learn_noise(beyond)
            off = beyond * spread
        gain = self._variance / (self._variance + self._noise)
        self._level = max(-_BOUND, min(_BOUND, self._level + gain * off))
        self._variance *= 1.0 - gain

    def _learn_noise(self, beyond: float) -> None:
        """Adapt the noise: of a deviation, the share that it would explain."""
        total = self._variance + self._noise
        # a clipped normal quantity has about its own variance
        seen = self._noise * (1.0 + (beyond * beyond - 1.0) * self._noise / total)
        self._noise += (seen - self._noise) / self._counts
        self._noise = min(_MOST_NOISE**2, max(_LEAST_NOISE**2, self._noise))
        self._counts = min(_NOISE_MEMORY, self._counts + 1.0)

    @property
    def _changed_at(self) -> float:
        return _CHANGED_AT_ONCE if self._at_once else _CHANGED_AT

    @property
    def doubt(self) -> float:
        """Standard deviation of the logarithm for a fall that may have happened; 0 without a sign of one."""
        fallen = math.sqrt(self._down / self._changed_at) * max(0.0, -self._off)
        return min(fallen, 2 * UNKNOWN_SD)

    def estimate(self) -> Estimate:
        """Return what is to be expected of the next request: log-normal, and what is in doubt apart from that.

        In the deviation, a doubt would raise the mean of what may have fallen.
        """
        variance = min(self._variance + self._noise, _MOST_VARIANCE)
        mean = math.exp(self._level + variance / 2.0)
        return Estimate(mean, mean * math.sqrt(math.expm1(variance)), self.doubt)

    @property
    def median(self) -> float:
        """The level itself."""
        return math.exp(self._level)

    def surer(self, other: Tracker) -> Tracker:
        """Return the tracker that knows its level better."""
        return self if self._variance < other._variance else other

    def as_json(self) -> dict[str, float]:
        """Return what was learnt."""
        return {
            "value": float(f"{self.median:.6g}"),
            "sd": round(math.sqrt(self._variance), 4),
            "noise": round(math.sqrt(self._noise), 4),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], *, at_once: bool = False) -> Tracker:
        """Return what `as_json` wrote, a little less sure of itself.

        Raises:
            ValueError, TypeError, KeyError: it is something else.
        """
        value, sd, noise = (float(data[name]) for name in ("value", "sd", "noise"))
        if not (0 < value < math.inf and 0 <= sd <= UNKNOWN_SD * 2 and _LEAST_NOISE <= noise <= _MOST_NOISE):
            raise ValueError(f"no estimate: {value}, {sd}, {noise}")
        return cls(value, noise=noise, sd=math.hypot(sd, _AWAY_SD), at_once=at_once)
