"""Quality of experience of many answers at once, in closed form: `pdd_core.qoe.qoe` of answers shown evenly."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray


def answer_qoe(
    output: ArrayLike,
    *,
    first: ArrayLike,
    ttft_s: ArrayLike,
    late_s: ArrayLike,
    first_gap_s: ArrayLike,
    rest_gap_s: ArrayLike,
    rate: float,
    ttft_target_s: float,
) -> NDArray[np.float64]:
    """Return the quality of many answers, each shown evenly in two parts.

    Args:
        output: tokens of the answers.
        first: tokens of the first part.
        ttft_s: when it begins.
        late_s: seconds by which the second part begins later than one of `rate` would.
        first_gap_s: seconds from token to token in the first part, at least 1 / `rate`.
        rest_gap_s: the same in the second part.
        rate: tokens per second of the ideal answer.
        ttft_target_s: when that begins.
    """
    tokens = _floats(output)
    one = np.clip(_floats(first), 0.0, tokens)
    two = tokens - one
    behind = _floats(ttft_s) - ttft_target_s
    slower, slower_rest = _floats(first_gap_s) - 1.0 / rate, _floats(rest_gap_s) - 1.0 / rate
    later = behind + one * slower + _floats(late_s)
    delay = _sum_positive(behind, slower, one) + _sum_positive(later, slower_rest, two)
    end = np.maximum(np.where(two > 0, later + (two - 1) * slower_rest, behind + (one - 1) * slower), 0.0)
    whole = tokens * (tokens + 1) / (2 * rate) + tokens * end
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(whole > 0, 1.0 - delay / whole, 1.0)


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    return np.asarray(values, dtype=np.float64)


def _sum_positive(
    start: NDArray[np.float64], growth: NDArray[np.float64], count: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the sum of ``max(0, start + i * growth)`` for i from 0 to count - 1; `growth` is not negative."""
    with np.errstate(divide="ignore", invalid="ignore"):
        skipped = np.where(start >= 0, 0.0, np.where(growth > 0, np.ceil(-start / growth), np.inf))
    skipped = np.minimum(skipped, count)
    left = count - skipped
    total = left * (start + skipped * growth) + growth * left * (left - 1) / 2
    return np.where(left > 0, np.maximum(total, 0.0), 0.0)
