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

from pdd_core.planner.cells import late_with_cells, prompt_seconds

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_core.planner.cells import Cells

_LEAST_S = 1e-6
"""Seconds; so that there is a logarithm where nothing is left."""
_LEAST_VARIANCE = 1e-18
"""So that there is a quotient where nothing is uncertain."""
_SQRT_2 = math.sqrt(2.0)


class Ops(NamedTuple):
    """The functions to compute with: `NUMBERS` has those of `math`. A module with arrays brings its own."""

    log: Callable[[Any], Any]
    log1p: Callable[[Any], Any]
    exp: Callable[[Any], Any]
    sqrt: Callable[[Any], Any]
    hypot: Callable[[Any, Any], Any]
    ceil: Callable[[Any], Any]
    maximum: Callable[[Any, Any], Any]
    minimum: Callable[[Any, Any], Any]
    where: Callable[[Any, Any, Any], Any]
    erfc: Callable[[Any], Any]


NUMBERS = Ops(
    log=math.log,
    log1p=math.log1p,
    exp=math.exp,
    sqrt=math.sqrt,
    hypot=math.hypot,
    ceil=math.ceil,
    maximum=max,
    minimum=min,
    where=lambda holds, a, b: a if holds else b,
    erfc=math.erfc,
)


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
    cells: Cells | None = None
    """The cells that arrive meanwhile; None where the device reads all of the prompt."""


def upper_tail(ops: Ops, deviations: Any) -> Any:
    """Return the chance that a normal quantity is above its mean by more than so many standard deviations."""
    return 0.5 * ops.erfc(deviations / _SQRT_2)


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


def late(ops: Ops, race: Race, budget: Any) -> Any:
    """Return the chance that the device is not ready when `budget` tokens have been shown."""
    alone = upper_tail(ops, margin(ops, race, budget))
    return alone if race.cells is None else ops.minimum(alone, late_with_cells(ops, race, race.cells, budget))


def break_even(ops: Ops, race: Race, slower: float = 0.0) -> Any:
    """Return the least N, from 1 on, at which a device of median speed is ready in time, or ``inf``.

    `slower` is the share of time by which the device is taken to be slower.
    """
    per_token = race.per_token * (1.0 + slower)
    gains = race.gap - per_token
    needed = race.work * per_token - race.credit
    if race.cells is not None:
        needed = ops.minimum(needed, race.cells.after + prompt_seconds(ops, race, race.cells, slower))
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
