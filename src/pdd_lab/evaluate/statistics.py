"""Figures and their uncertainty. Arrays of logits are float32 of shape (positions, n_vocab)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

RESAMPLES = 2000


@dataclass(frozen=True, slots=True)
class ConfidenceInterval:
    """A mean with its 95 % interval."""

    mean: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int) -> ConfidenceInterval:
    """Return a share with Wilson's score interval (Wilson, 1927); of no case, the interval is 0 to 1."""
    from scipy.stats import binomtest

    if n == 0:
        return ConfidenceInterval(math.nan, 0.0, 1.0, 0)
    found = binomtest(successes, n).proportion_ci(method="wilson")
    return ConfidenceInterval(successes / n, float(found.low), float(found.high), n)


def bootstrap(values: Sequence[float], *, seed: int = 0) -> ConfidenceInterval:
    """Return a mean over cases with its percentile bootstrap interval (Efron, 1979): the same one each time."""
    from scipy import stats

    if len(values) < 2:
        only = values[0] if values else math.nan
        return ConfidenceInterval(only, only, only, len(values))
    found = stats.bootstrap((values,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=seed)
    low, high = found.confidence_interval
    return ConfidenceInterval(float(np.mean(values)), float(low), float(high), len(values))


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """Return natural log-probabilities, float32."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    result: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True, dtype=np.float64)).astype(
        np.float32
    )
    return result


def divergence(full: np.ndarray, refined: np.ndarray) -> np.ndarray:
    """Return KL(full || refined) of each position in nats, from log-probabilities; never below 0."""
    values: np.ndarray = np.maximum((np.exp(full) * (full - refined)).sum(axis=-1, dtype=np.float64), 0.0)
    return values


def separating(bad: Sequence[float], good: Sequence[float], *, share: float = 0.95) -> tuple[float, float]:
    """Return between which values a threshold lies that notices `share` of `bad` and none of `good`.

    Lower bound: the largest of `good`. Upper bound: the largest value that `share` of `bad` exceed or reach. If
    the second is not above the first, no threshold does both.
    """
    ordered = sorted(bad)
    allowed = math.floor((1 - share) * len(ordered) + 1e-9)
    return max(good, default=0.0), ordered[min(allowed, len(ordered) - 1)] if ordered else math.nan
