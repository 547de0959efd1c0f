"""The figures of an evaluation: what goes into the table, the plot and the JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from pdd_core.refinement.guard import THRESHOLD, Guard
from pdd_lab.evaluate.evaluation_settings import BAD, INFORMED, NONE
from pdd_lab.evaluate.statistics import ConfidenceInterval, bootstrap, separating, wilson

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pdd_lab.evaluate.evaluation_settings import Setting
    from pdd_lab.evaluate.examination import MeasuredCase
    from pdd_lab.evaluate.measure import Outcome, Record

THRESHOLDS = tuple(sorted({0.05, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, THRESHOLD}))
"""Nats per token."""
GUARD_TOKENS = (8, 32)
"""The guard is looked at with so many of the cloud's tokens to judge by."""
GOOD = 0.9
"""An open answer with at least this agreement lost nothing that the guard should report."""


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
    spread: int = 0
    """So many of them the cloud would not refine; they are measured all the same."""

    @property
    def ratios(self) -> set[float]:
        """The ratios that were asked for: those that more than the guard's bad setting has."""
        return {ratio for refiner, ratio in self.outcomes if refiner not in (NONE, BAD[0])}

    @property
    def exact(self) -> bool:
        """Whether a case is right or wrong, not a share."""
        return self.task != "agreement"

    def add(self, measured: MeasuredCase) -> None:
        """Take in one case; it counts only as tried if the model does not get it right."""
        self.tried += 1
        if measured.outcomes:
            self.records.append(measured.record)
            self.spread += measured.spread
            for setting, outcome in measured.outcomes.items():
                self.outcomes.setdefault(setting, []).append(outcome)

    def score(self, setting: Setting) -> ConfidenceInterval:
        """Return the share of right answers, or the mean agreement."""
        scores = [outcome["score"] for outcome in self.outcomes[setting]]
        return wilson(round(sum(scores)), len(scores)) if self.exact else bootstrap(scores)

    def evidence(self, setting: Setting) -> ConfidenceInterval | None:
        """Return how often all of what holds the answer was kept; None where that is no one place."""
        kept = [outcome["evidence"] for outcome in self.outcomes[setting] if "evidence" in outcome]
        return wilson(sum(kept), len(kept)) if kept else None

    def divergence(self, setting: Setting) -> ConfidenceInterval:
        """Return the mean KL in nats per token; NaN where only right and wrong are known."""
        return bootstrap([outcome["kl"] for outcome in self.outcomes[setting] if "kl" in outcome])

    def kept(self, setting: Setting) -> float:
        """Return the share of tokens that were kept: protected ones alone may exceed the ratio."""
        shares = [
            outcome["kept"] / record["prompt_tokens"]
            for record, outcome in zip(self.records, self.outcomes[setting], strict=True)
        ]
        return math.fsum(shares) / len(shares)

    def statistic(self, setting: Setting, tokens: int) -> list[float]:
        """Return the guard's statistic of each case, by the first `tokens` of the cloud's."""
        guard = Guard(tokens=tokens)
        pairs = zip(self.records, self.outcomes[setting], strict=True)
        return [guard.excess(record["cloud"], outcome["device"]) for record, outcome in pairs]

    def lost(self, setting: Setting) -> list[bool]:
        """Return for each case whether the refined prompt lost what the answer needs."""
        return [outcome["score"] < (1.0 if self.exact else GOOD) for outcome in self.outcomes[setting]]


def figures(results: Iterable[TaskResults], *, bad: Setting) -> dict[str, Any]:
    """Return all figures, ready for JSON. `bad` is the setting that the guard has to notice."""
    results = list(results)
    scored = [result for result in results if result.records]
    return {
        "tried": {result.task: result.tried for result in results},
        "tasks": {
            result.task: _task(result, [s for s in result.outcomes if s != bad or s[1] in result.ratios])
            for result in scored
        },
        "guard": {
            "bad": list(bad),
            "threshold": THRESHOLD,
            "tasks": {result.task: [_guard(result, bad, tokens) for tokens in GUARD_TOKENS] for result in scored},
        },
    }


def _task(result: TaskResults, settings: Sequence[Setting]) -> dict[str, Any]:
    lengths = [record["prompt_tokens"] for record in result.records]
    return {
        "tried": result.tried,
        "scored": len(result.records),
        "spread": result.spread,
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
                "score": rounded(result.score((refiner, ratio))),
                "evidence": rounded(evidence) if (evidence := result.evidence((refiner, ratio))) else None,
                "kl": None if result.exact else rounded(result.divergence((refiner, ratio))),
                "by_kind": _by_kind(result, (refiner, ratio)) if result.exact else None,
            }
            for refiner, ratio in settings
        ],
    }


def _by_kind(result: TaskResults, setting: Setting) -> dict[str, Any]:
    kinds: dict[str, list[float]] = {}
    for record, outcome in zip(result.records, result.outcomes[setting], strict=True):
        kinds.setdefault(record["case"]["kind"], []).append(outcome["score"])
    return {kind: rounded(wilson(round(sum(scores)), len(scores))) for kind, scores in sorted(kinds.items())}


def _guard(result: TaskResults, bad: Setting, tokens: int) -> dict[str, Any]:
    """Return the rates of false alarms and misses at each threshold, and where a threshold separates."""
    found = {setting: result.statistic(setting, tokens) for setting in result.outcomes}
    whole = [value for setting, values in found.items() if setting[1] == 1.0 for value in values]
    no_alarm_up_to, fires_below = separating(found.get(bad, []), whole)
    cases = [
        (value, lost)
        for setting, values in found.items()
        if setting[0] not in (NONE, INFORMED) and setting[1] < 1.0 and setting != bad
        for value, lost in zip(values, result.lost(setting), strict=True)
    ]
    return {
        "tokens": tokens,
        "largest_at_ratio_1": rounded_figure(no_alarm_up_to),
        "bad_95_percent_above": rounded_figure(fires_below),
        "thresholds": [
            {
                "threshold": threshold,
                "bad": rounded(_share(value > threshold for value in found.get(bad, []))),
                "ratio_1": rounded(_share(value > threshold for value in whole)),
                "false_alarms": rounded(_share(value > threshold for value, lost in cases if not lost)),
                "misses": rounded(_share(value <= threshold for value, lost in cases if lost)),
            }
            for threshold in THRESHOLDS
        ],
        "mean": {
            f"{refiner} {ratio:g}": rounded_figure(math.fsum(values) / len(values))
            for (refiner, ratio), values in found.items()
        },
    }


def _share(hits: Iterable[bool]) -> ConfidenceInterval:
    held = list(hits)
    return wilson(sum(held), len(held))


def _count(names: Iterable[str]) -> Mapping[str, int]:
    counts: dict[str, int] = {}
    for name in names:
        counts[name] = counts.get(name, 0) + 1
    return dict(sorted(counts.items()))


def rounded(estimate: ConfidenceInterval) -> dict[str, float | None]:
    """Return an estimate, ready for JSON."""
    values = asdict(estimate)
    return {name: rounded_figure(value) for name, value in values.items()}


def rounded_figure(value: float) -> float | None:
    """Return a figure, ready for JSON; None for what is no number."""
    return round(value, 4) if math.isfinite(value) else None  # JSON has no NaN
