"""A quantity that depends on a length: a known shape, times a tracked level, times what lengths differ by."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pdd_core.planner.tracker import UNKNOWN_SD, Tracker
from pdd_core.planner.types import Estimate

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_OCTAVES = 9
"""Lengths up to 128, 256, ... tokens are told apart; the last one has all from 16,384 on."""
_WEIGHT = 0.25
"""Of the newest observation, in what lengths differ by."""
_FARTHEST = 20.0
"""Of the logarithm: no quantity differs by more between two lengths, nor a shape from another."""
_LARGEST = 0.7
"""Of the logarithm: a larger deviation is a change of the level, and says nothing about the length."""


class Curve:
    """Follows one quantity over lengths. The caller knows the shape, and gives its value for each length.

    Args:
        noise: relative standard deviation from request to request, a guess.
        sd: how far off the shape may be, standard deviation of the logarithm.
    """

    __slots__ = ("_offsets", "_tracker")

    def __init__(self, *, noise: float = 0.1, sd: float = UNKNOWN_SD) -> None:
        self._tracker = Tracker(1.0, noise=noise, sd=sd)
        self._offsets: dict[int, float] = {}

    def observe(self, length: float, value: float, *, shape: float) -> None:
        """Learn that the quantity was `value` at `length`, where the shape has `shape`."""
        if not (0 < value < math.inf and shape > 0):
            return
        octave = _octave(length)
        offset = self._offset(octave)
        self._tracker.observe(value / shape / math.exp(offset))
        rest = math.log(value / shape) - math.log(self._tracker.median) - offset
        if abs(rest) <= _LARGEST:
            self._offsets[octave] = offset + _WEIGHT * rest

    def estimate(self, length: float, *, shape: float) -> Estimate:
        """Return what is to be expected at `length`."""
        factor = shape * math.exp(self._offset(_octave(length)))
        ratio = self._tracker.estimate()
        return Estimate(ratio.mean * factor, ratio.sd * factor, ratio.doubt)

    def _offset(self, octave: int) -> float:
        """Return what an octave differs by; of one never seen, what the nearest one does."""
        if not self._offsets:
            return 0.0
        nearest = min(self._offsets, key=lambda seen: abs(seen - octave))
        return self._offsets[nearest]

    def surer(self, other: Curve) -> Curve:
        """Return the curve that knows its level better."""
        return self if self._tracker.surer(other._tracker) is self._tracker else other

    def as_json(self, shape: Callable[[float], float]) -> dict[str, Any]:
        """Return what was learnt: the quantity itself, at the lengths seen, so that another shape may go on."""
        octaves = sorted(self._offsets)
        level = self._tracker.as_json()
        at = _length(octaves[0] if octaves else 0)
        values = {
            str(octave): level["value"] * shape(_length(octave)) * math.exp(self._offsets[octave])
            for octave in octaves
        }
        return {
            "level": {**level, "value": _short(level["value"] * shape(at))},
            "at": at,
            "values": {octave: _short(value) for octave, value in values.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any], shape: Callable[[float], float]) -> Curve:
        """Return what `as_json` wrote, over a `shape` that may be another.

        Raises:
            ValueError, TypeError, KeyError, AttributeError: it is something else.
        """
        curve, at = cls(), float(data["at"])
        if not 0 < at <= _length(_OCTAVES):
            raise ValueError(f"no length: {at}")
        level = float(data["level"]["value"]) / shape(at)
        curve._tracker = Tracker.from_json({**data["level"], "value": level})
        for name, value in data["values"].items():
            octave, ratio = int(name), float(value) / level
            if not (0 <= octave < _OCTAVES and 0 < ratio < math.inf):
                raise ValueError(f"no value at a length: {name}: {value}")
            offset = math.log(ratio / shape(_length(octave)))
            if abs(offset) > _FARTHEST:
                raise ValueError(f"too far from the others: {name}: {value}")
            curve._offsets[octave] = offset
        return curve


def _length(octave: int) -> int:
    """Return the tokens in the middle of an octave."""
    return 96 << octave


def _short(value: float) -> float:
    return float(f"{value:.6g}")


def _octave(length: float) -> int:
    return min(_OCTAVES - 1, max(0, math.ceil(math.log2(max(length, 1.0) / 128.0))))
