"""What the passes come to: medians with their extremes, and the device's profile."""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pdd_core.planner.profiles import MeasuredDevice, RatePoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pdd_lab.bench.device_pass import Sample

LEAST_REPS = 3
"""Fewer repetitions say nothing about a spread."""


@dataclass(frozen=True, slots=True)
class Rate:
    """One speed, over all repetitions. Tokens per second."""

    kind: str
    threads: int
    at: float
    """Tokens in the context."""
    tokens: int
    median: float
    low: float
    high: float


@dataclass(slots=True)
class Measured:
    """All timings so far."""

    passes: list[tuple[int, list[Sample]]] = field(default_factory=list)
    """Threads, and the samples of one whole pass."""

    def add(self, threads: int, samples: Iterable[Sample]) -> None:
        """Take in a pass, once it is complete."""
        self.passes.append((threads, list(samples)))

    def rates(self) -> list[Rate]:
        """Return the median of every speed, by kind, threads and length."""
        found: dict[tuple[str, int, float, int], list[float]] = defaultdict(list)
        for threads, samples in self.passes:
            for one in samples:
                found[one.kind, threads, one.at, one.tokens].append(one.tps)
        return [
            Rate(kind, threads, at, tokens, statistics.median(values), min(values), max(values))
            for (kind, threads, at, tokens), values in sorted(found.items())
        ]

    def spread(self, threads: int) -> float | None:
        """Return the relative standard deviation of a pass' speed: the larger of prefill's and decode's.

        None with fewer than three passes.
        """
        own = [samples for count, samples in self.passes if count == threads]
        if len(own) < LEAST_REPS:
            return None
        return max(
            _relative_deviation([_speed(samples, kind) for samples in own]) for kind in ("prefill", "decode")
        )

    def fastest(self) -> int:
        """Return the number of threads with which a prompt of the measured length is read soonest."""
        speeds: dict[int, list[float]] = defaultdict(list)
        for threads, samples in self.passes:
            speeds[threads].append(_speed(samples, "prefill"))
        return max(speeds, key=lambda threads: statistics.median(speeds[threads]))

    def profile(self, threads: int, *, name: str, model: str, n_ctx: int) -> MeasuredDevice:
        """Return the planner's profile of the device with `threads` threads."""
        own = [rate for rate in self.rates() if rate.threads == threads]

        def points(kind: str) -> tuple[RatePoint, ...]:
            return tuple(RatePoint(at=one.at, value=round(one.median, 2)) for one in own if one.kind == kind)

        profile = MeasuredDevice(
            name=name, model=model, prefill_tps=points("prefill"), decode_tps=points("decode"), n_ctx=n_ctx
        )
        spread = self.spread(threads)
        return profile if spread is None else profile.model_copy(update={"spread": round(spread, 4)})


def as_json(rates: Iterable[Rate]) -> list[dict[str, Any]]:
    """Return `rates` ready for JSON."""
    return [
        {
            "kind": one.kind,
            "threads": one.threads,
            "at": one.at,
            "tokens": one.tokens,
            "median_tps": round(one.median, 2),
            "low_tps": round(one.low, 2),
            "high_tps": round(one.high, 2),
        }
        for one in rates
    ]


def _speed(samples: Iterable[Sample], kind: str) -> float:
    own = [one for one in samples if one.kind == kind]
    return sum(one.tokens for one in own) / sum(one.seconds for one in own)


def _relative_deviation(values: list[float]) -> float:
    return statistics.stdev(values) / statistics.fmean(values)
