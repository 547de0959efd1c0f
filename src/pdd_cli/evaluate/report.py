"""The figures of an evaluation: what goes into the table, the plot and the JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pdd_cli.evaluate.metrics import Estimate, bootstrap, separating, wilson
from pdd_core.refinement.guard import Guard

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pdd_cli.evaluate.measure import Outcome, Record

NONE = "none"
"""Not a refiner: only the protected tokens are kept."""
THRESHOLDS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
"""Nats per token."""
GOOD = 0.9
"""An open answer with at least this agreement lost nothing that the guard should report."""

Setting = tuple[str, float]
"""Refiner and ratio."""


@dataclass(slots=True)
class TaskResults:
    """What was measured of one task."""

    task: str
    tried: int = 0
    """Cases that the model was given with the full prompt."""
    records: list[Record] = field(default_factory=list)
    """Those it got right, which are scored."""
    outcomes: dict[Setting, list[Outcome]] = field(default_factory=dict)
    """In the order of `records`."""

    @property
    def exact(self) -> bool:
        """Whether a case is right or wrong, not a share."""
        return self.task != "agreement"

    def add(self, setting: Setting, outcome: Outcome) -> None:
        """Take in what came of the last record's case."""
        self.outcomes.setdefault(setting, []).append(outcome)

    def score(self, setting: Setting) -> Estimate:
        """Return the share of right answers, or the mean agreement."""
        scores = [outcome["score"] for outcome in self.outcomes[setting]]
        return wilson(round(sum(scores)), len(scores)) if self.exact else bootstrap(scores)

    def divergence(self, setting: Setting) -> Estimate:
        """Return the mean KL in nats per token; NaN where only right and wrong are known."""
        return bootstrap([outcome["kl"] for outcome in self.outcomes[setting] if "kl" in outcome])

    def kept(self, setting: Setting) -> float:
        """Return the share of tokens that were kept: protected ones alone may exceed the ratio."""
        shares = [
            outcome["kept"] / record["prompt_tokens"]
            for record, outcome in zip(self.records, self.outcomes[setting], strict=True)
        ]
        return math.fsum(shares) / len(shares)

    def excess(self, setting: Setting, tokens: int) -> list[float]:
        """Return the guard's statistic of each case, by the first `tokens` of the cloud's."""
        guard = Guard(least_tokens=1, tokens=tokens)
        pairs = zip(self.records, self.outcomes[setting], strict=True)
        return [guard.excess(record["cloud"], outcome["device"]) for record, outcome in pairs]

    def lost(self, setting: Setting) -> list[bool]:
        """Return for each case whether the refined prompt lost what the answer needs."""
        return [outcome["score"] < (1.0 if self.exact else GOOD) for outcome in self.outcomes[setting]]


def figures(results: Iterable[TaskResults], *, bad: Setting, tokens: int) -> dict[str, Any]:
    """Return all figures, ready for JSON. `bad` is the setting that the guard has to notice."""
    results = [result for result in results if result.records]
    return {
        "tasks": {result.task: _task(result, [s for s in result.outcomes if s != bad]) for result in results},
        "guard": _guard(results, bad, tokens),
    }


def _task(result: TaskResults, settings: Sequence[Setting]) -> dict[str, Any]:
    lengths = [record["prompt_tokens"] for record in result.records]
    return {
        "tried": result.tried,
        "scored": len(result.records),
        "kinds": _count(record["case"]["kind"] for record in result.records),
        "prompt_tokens": {
            "least": min(lengths),
            "mean": round(sum(lengths) / len(lengths), 1),
            "most": max(lengths),
        },
        "metric": "exact match" if result.exact else "top-1 agreement",
        "settings": [
            {
                "refiner": refiner,
                "ratio": ratio,
                "kept": round(result.kept((refiner, ratio)), 4),
                "score": _rounded(result.score((refiner, ratio))),
                "kl": None if result.exact else _rounded(result.divergence((refiner, ratio))),
                "by_kind": _by_kind(result, (refiner, ratio)) if result.exact else None,
            }
            for refiner, ratio in settings
        ],
    }


def _by_kind(result: TaskResults, setting: Setting) -> dict[str, Any]:
    kinds: dict[str, list[float]] = {}
    for record, outcome in zip(result.records, result.outcomes[setting], strict=True):
        kinds.setdefault(record["case"]["kind"], []).append(outcome["score"])
    return {kind: _rounded(wilson(round(sum(scores)), len(scores))) for kind, scores in sorted(kinds.items())}


def _guard(results: Sequence[TaskResults], bad: Setting, tokens: int) -> dict[str, Any]:
    """Return the rates of false alarms and misses at each threshold, and where a threshold separates."""
    report: dict[str, Any] = {"tokens": tokens, "bad": list(bad), "tasks": {}}
    for result in results:
        settings = [setting for setting in result.outcomes if setting[0] not in (NONE, bad[0]) or setting == bad]
        excess = {setting: result.excess(setting, tokens) for setting in result.outcomes}
        whole = [value for setting, values in excess.items() if setting[1] == 1.0 for value in values]
        no_alarm_up_to, fires_below = separating(excess.get(bad, []), whole)
        cases = [
            (value, lost)
            for setting in settings
            if setting[1] < 1.0 and setting != bad
            for value, lost in zip(excess[setting], result.lost(setting), strict=True)
        ]
        report["tasks"][result.task] = {
            "largest_at_ratio_1": round(no_alarm_up_to, 4),
            "bad_95_percent_above": round(fires_below, 4),
            "thresholds": [
                {
                    "threshold": threshold,
                    "bad": _rounded(_share(value > threshold for value in excess.get(bad, []))),
                    "ratio_1": _rounded(_share(value > threshold for value in whole)),
                    "false_alarms": _rounded(_share(value > threshold for value, lost in cases if not lost)),
                    "misses": _rounded(_share(value <= threshold for value, lost in cases if lost)),
                }
                for threshold in THRESHOLDS
            ],
            "mean_excess": {
                f"{refiner} {ratio:g}": round(math.fsum(values) / len(values), 4)
                for (refiner, ratio), values in excess.items()
            },
        }
    return report


def _share(hits: Iterable[bool]) -> Estimate:
    held = list(hits)
    return wilson(sum(held), len(held))


def _count(names: Iterable[str]) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def _rounded(estimate: Estimate) -> dict[str, float | None]:
    values = asdict(estimate)
    return {name: round(value, 4) if math.isfinite(value) else None for name, value in values.items()}
