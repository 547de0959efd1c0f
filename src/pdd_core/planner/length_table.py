"""How long an answer may get, as a table: its chance to be longer than n, and the mean of min(length, n)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray

LONGEST = 32768
"""Tokens: longer answers count as this long."""
_EXACT = 16
"""Up to here every length has a bin of its own; above, bins are an eighth wider from one to the next."""


def _edges() -> tuple[int, ...]:
    edges = list(range(_EXACT + 1))
    while edges[-1] < LONGEST:
        edges.append(min(LONGEST, edges[-1] + max(1, edges[-1] // 8)))
    return tuple(edges)


EDGES = _edges()
"""Bin i has the lengths above ``EDGES[i]``, up to ``EDGES[i + 1]``, each as likely as the other."""
BINS = len(EDGES) - 1
WIDTHS = np.diff(EDGES).astype(np.float64)


def bin_of(tokens: int) -> int:
    """Return the bin of an answer of `tokens`, at least 1."""
    return bisect_right(EDGES, min(max(tokens, 1), LONGEST) - 1) - 1


@dataclass(frozen=True, slots=True)
class LengthTable:
    """The distribution of one answer's length O. Values at `EDGES`, straight lines between them."""

    survival: tuple[float, ...]
    """P(O > n)."""
    mean_min: tuple[float, ...]
    """E[min(O, n)]."""
    mean_square: tuple[float, ...]
    """E[min(O, n) ** 2]."""

    @classmethod
    def of(cls, weights: ArrayLike) -> LengthTable:
        """Return the table for `weights` of the bins, shape (BINS,), of any positive sum."""
        mass = np.asarray(weights, dtype=np.float64)
        after = np.concatenate([np.cumsum(mass[::-1])[::-1], [0.0]]) / mass.sum()
        # E[min(O, n)] is the sum of P(O > k) for k < n, E[min(O, n) ** 2] that of (2 k + 1) P(O > k); in a bin
        # from a to b, P(O > k) falls in a straight line
        begin, end = np.asarray(EDGES[:-1], dtype=np.float64), np.asarray(EDGES[1:], dtype=np.float64)
        first, fall = after[:-1], (after[:-1] - after[1:]) / WIDTHS
        steps = _sum_k(end) - _sum_k(begin)
        squares = _sum_squares(end) - _sum_squares(begin)
        once = WIDTHS * first - fall * (steps - begin * WIDTHS)
        odd = 2 * steps + WIDTHS
        twice = first * odd - fall * (2 * squares + steps - begin * odd)
        return cls(
            survival=tuple(after.tolist()),
            mean_min=(0.0, *np.cumsum(once).tolist()),
            mean_square=(0.0, *np.cumsum(twice).tolist()),
        )

    def longer_than(self, tokens: float) -> float:
        """Return P(O > tokens)."""
        return _between(self.survival, tokens)

    def expected(self, limit: float) -> tuple[float, float]:
        """Return the mean of min(O, limit), and that of its square."""
        return _between(self.mean_min, limit), _between(self.mean_square, limit)


def _between(values: tuple[float, ...], tokens: float) -> float:
    if tokens >= LONGEST:
        return values[-1]
    index = bisect_right(EDGES, tokens) - 1
    if index < 0:
        return values[0]
    low = EDGES[index]
    return values[index] + (values[index + 1] - values[index]) * (tokens - low) / (EDGES[index + 1] - low)


def _sum_k(end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of k for k < end."""
    return end * (end - 1) / 2


def _sum_squares(end: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the sum of k ** 2 for k < end."""
    return (end - 1) * end * (2 * end - 1) / 6
