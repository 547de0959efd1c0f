"""The race of a device that also gets cells of the cloud's KV cache: formulas for numbers and for arrays.

From the first cell on, the prompt is done from both ends: the device reads at p tokens per second from the front,
and s cells per second arrive from the back. There are no cells of what the cloud decodes: the N received tokens
are read at p, once the prompt is done. So the device is ready in time where

    after + max(0, work - ahead p) / (p + s) + N / p  <=  N / r

Never later than without cells: these formulas are used beside those of `formulas`, and the sooner one counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdd_core.planner.formulas import Ops, Race

_LEAST = 1e-18
_LEAST_S = 1e-6
_SQRT_2 = math.sqrt(2.0)
_LOWEST, _HIGHEST, _WIDTH = -4.0, 2.0, 0.25
"""Standard deviations of log s, where it is cut into slices."""


@dataclass(frozen=True, slots=True)
class Cells:
    """The cells of a prompt on their way. Times in seconds; every field is a number, or an array."""

    per_s: Any
    """s, at its median."""
    sigma: Any
    """Standard deviation of log s."""
    ahead: Any
    """For how long the device has read when the first cell arrives."""
    after: Any
    """From the first token's showing to the first cell that is of use, and the device's last step."""
    after_sd: Any


def _tail(deviations: float) -> float:
    return 0.5 * math.erfc(deviations / _SQRT_2)


def _slices() -> tuple[tuple[float, float], ...]:
    count = round((_HIGHEST - _LOWEST) / _WIDTH)
    edges = [_LOWEST + _WIDTH * i for i in range(count + 1)]
    above = [1.0, *(_tail(edge) for edge in edges[1:]), 0.0]
    return tuple((edge, above[i] - above[i + 1]) for i, edge in enumerate(edges))


SLICES = _slices()
"""Of a normal quantity: the lower edge of each slice in standard deviations, and its share. In each slice the link
is taken to be as slow as at its lower edge, so that the risk comes out too high and not too low."""


def late_with_cells(ops: Ops, race: Race, cells: Cells, budget: Any) -> Any:
    """Return the chance that the device is not ready when `budget` tokens have been shown.

    p and s are log-normal. So is the time there is: that it is shorter is as if p and s were lower by one factor.
    """
    lasts = ops.maximum(budget * race.gap - cells.after, _LEAST_S)
    spread = ops.log1p((cells.after_sd / lasts) * (cells.after_sd / lasts))
    usual = lasts * ops.exp(-spread / 2.0)
    variance = cells.sigma * cells.sigma + spread + _LEAST
    sigma = ops.sqrt(variance)
    rest = ops.sqrt(race.sigma * race.sigma + spread * cells.sigma * cells.sigma / variance + _LEAST)
    chance: Any = 0.0
    for edge, share in SLICES:
        speed = cells.per_s * ops.exp(edge * sigma)
        early = edge * spread / sigma - ops.log(
            _least_speed(ops, race, cells, budget, usual, speed) * race.per_token
        )
        chance = chance + share * 0.5 * ops.erfc(early / rest / _SQRT_2)
    return chance


def _least_speed(ops: Ops, race: Race, cells: Cells, budget: Any, lasts: Any, per_s: Any) -> Any:
    """Return the least p with which the device is ready `lasts` seconds after the first cell.

    The root of ``(work - ahead p) / (p + s) + N / p = lasts``, or without cells where that is less.
    """
    whole = lasts + cells.ahead
    spare = lasts * per_s - race.work - budget
    both = ops.maximum(spare, -spare) + ops.sqrt(spare * spare + 4.0 * whole * budget * per_s)
    both = ops.maximum(both, _LEAST)
    root = ops.where(spare > 0, 2.0 * budget * per_s / both, both / (2.0 * whole))
    return ops.maximum(_LEAST, ops.minimum(root, (race.work + budget) / whole))


def prompt_seconds(ops: Ops, race: Race, cells: Cells, slower: float = 0.0) -> Any:
    """Return how long the rest of the prompt takes from the first cell on, at the medians of both speeds.

    `slower` is the share of time by which both are taken to be slower.
    """
    per_token = race.per_token * (1.0 + slower)
    left = ops.maximum(0.0, race.work * per_token - cells.ahead)
    return left / (1.0 + cells.per_s * race.per_token)


def cells_used(ops: Ops, race: Race, cells: Cells) -> Any:
    """Return how many cells arrive until the prompt is done, at the medians of both speeds."""
    return cells.per_s * prompt_seconds(ops, race, cells)
