"""Sums of steps that each take a little longer than the one before."""

from __future__ import annotations

import math

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
