"""The planner's formulas, written once for numbers and for arrays: `Ops` says how to compute with either.

A handoff works if what the cloud sends lasts until the device is ready. The device has ``work`` prompt tokens to
read and the N received ones, at p tokens per second; these are shown at r, and the cloud's first token came
``credit`` seconds after the device had begun. So ``(work + N) / p <= credit + N / r``; without credit N = r work /
(p - r). Both sides are uncertain: the left as p is (log-normal), the right as the time of the first token is.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

_LEAST_S = 1e-6
"""Seconds; so that there is a logarithm where nothing is left."""
_LEAST_VARIANCE = 1e-18
"""So that there is a quotient where nothing is uncertain."""
_FARTHEST = 12.0
"""Standard deviations."""
_SQRT_2 = math.sqrt(2.0)
_ERFCC = (
    0.17087277,
    -0.82215223,
    1.48851587,
    -1.13520398,
    0.27886807,
    -0.18628806,
    0.09678418,
    0.37409196,
    1.00002368,
    -1.26551223,
)


class Ops(NamedTuple):
    """Functions of numbers, or of arrays."""

    log: Callable[[Any], Any]
    log1p: Callable[[Any], Any]
    exp: Callable[[Any], Any]
    sqrt: Callable[[Any], Any]
    ceil: Callable[[Any], Any]
    maximum: Callable[[Any, Any], Any]
    minimum: Callable[[Any, Any], Any]
    where: Callable[[Any, Any, Any], Any]
    upper_tail: Callable[[Any], Any]
    """The chance that a normal quantity is above its mean by more than so many standard deviations."""


def _tail(deviations: float) -> float:
    return 0.5 * math.erfc(deviations / _SQRT_2)


def _tails(deviations: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return `_tail` of each to 1.2e-7 of itself, after Numerical Recipes, 6.2: numpy has no erfc."""
    z = np.clip(deviations, -_FARTHEST, _FARTHEST) / _SQRT_2
    x = np.abs(z)
    t = 1.0 / (1.0 + 0.5 * x)
    series = np.polyval(_ERFCC, t)
    tail = 0.5 * t * np.exp(-x * x + series)
    return np.asarray(np.where(z >= 0, tail, 1.0 - tail))


NUMBERS = Ops(
    math.log, math.log1p, math.exp, math.sqrt, math.ceil, max, min, lambda holds, a, b: a if holds else b, _tail
)
ARRAYS = Ops(np.log, np.log1p, np.exp, np.sqrt, np.ceil, np.maximum, np.minimum, np.where, _tails)


@dataclass(frozen=True, slots=True)
class Race:
    """The device against the buffer. Times in seconds; every field is a number, or an array."""

    work: Any
    """Prompt tokens that the device reads."""
    credit: Any
    """By how much the first token's showing comes after the device's begin, less its last step."""
    credit_sd: Any
    gap: Any
    """1 / r: how long a token lasts."""
    per_token: Any
    """1 / p, at the median of p."""
    sigma: Any
    """Standard deviation of log p."""


def log_sigma(ops: Ops, mean: Any, sd: Any) -> Any:
    """Return the deviation of the logarithm of a log-normal quantity."""
    return ops.sqrt(ops.log1p((sd / mean) * (sd / mean)))


def median(ops: Ops, mean: Any, sd: Any) -> Any:
    """Return the median of a log-normal quantity; 0 of one that is 0."""
    return mean * mean / ops.sqrt(ops.maximum(mean * mean + sd * sd, _LEAST_VARIANCE))


def seconds_per_token(ops: Ops, mean: Any, sd: Any) -> Any:
    """Return 1 / median of a log-normal speed."""
    return ops.sqrt(1.0 + (sd / mean) * (sd / mean)) / mean


def margin(ops: Ops, race: Race, budget: Any) -> Any:
    """Return by how many standard deviations the device is early when `budget` tokens have been shown."""
    lasts = ops.maximum(race.credit + budget * race.gap, _LEAST_S)
    spread = ops.log1p((race.credit_sd / lasts) * (race.credit_sd / lasts))
    early = ops.log(lasts) - spread / 2.0 - ops.log((race.work + budget) * race.per_token)
    return early / ops.sqrt(race.sigma * race.sigma + spread + _LEAST_VARIANCE)


def break_even(ops: Ops, race: Race) -> Any:
    """Return the least N, from 1 on, at which a device of median speed is ready in time, or ``inf``."""
    gains = race.gap - race.per_token
    needed = race.work * race.per_token - race.credit
    usable = ops.maximum(gains, 1e-12)
    later = ops.where(gains > 1e-12, ops.maximum(ops.ceil(needed / usable - 1e-9), 1.0), math.inf)
    return ops.where(needed <= gains, 1.0, later)


def expected_qoe(ops: Ops, *, output: Any, delay_s: Any, slower_s: Any, gap: Any) -> Any:
    """Return Andes' quality of an answer that begins `delay_s` late and is shown too slowly.

    Args:
        ops: how to compute.
        output: tokens of the answer.
        delay_s: seconds after the target at which it begins, at least 0.
        slower_s: seconds by which its gaps are too long, at least 0.
        gap: seconds of a gap at the reader's rate.
    """
    behind = slower_s * ops.maximum(output - 1.0, 0.0)
    delay = (delay_s + behind / 2.0) * output
    end = delay_s + behind
    return 1.0 - delay / (output * (output + 1.0) / 2.0 * gap + output * end)
