"""What `offline.py` measured: on disk after each measurement, and summed up per shape."""

import argparse
import json
import platform
import statistics
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from budgets import planner_budget
from load import Cell

RATIOS = (1.0, 0.25)
"""Shares of the prompt that the device reads, for the planner's N."""
STEADY = (0.95, 1.05)
"""Between these is the second half of a window over its first, in an engine that was in its steady state."""


def planned(cell: Cell) -> dict[str, int]:
    """Return the planner's N by the share of the prompt that the device reads."""
    return {f"{ratio:g}": min(planner_budget(cell.prompt, ratio=ratio), cell.output) for ratio in RATIOS}


def is_steady(figures: dict[str, float]) -> bool:
    """Return whether both halves of a window gave the same."""
    return STEADY[0] <= figures["second_half_over_first"] <= STEADY[1]


class Record:
    """The run's file."""

    def __init__(self, path: Path, options: argparse.Namespace) -> None:
        self._path = path
        self.measured: list[dict[str, Any]] = []
        self.left_out: list[str] = []
        self.failures: list[str] = []
        self.head: dict[str, Any] = {
            "benchmark": "offline",
            "begun": time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime()),
            "options": {name: str(value) for name, value in vars(options).items()},
            "python": platform.python_version(),
        }

    def add(self, engine: str, cell: Cell, figures: dict[str, float], *, warm_up: bool = False) -> None:
        """Keep and print one measurement. One that was to warm the engine up counts for nothing."""
        name = "whole answers" if cell.end == "full" else f"{cell.end} {cell.tokens}"
        print(
            f"{cell.name:>22}  {engine:6}  {name:13}  {figures['requests_per_s']:8.2f} req/s  "
            f"step {figures['step_ms']:6.1f} ms  running {figures['running']:6.1f}"
            + ("  warm-up" if warm_up else "" if is_steady(figures) else "  UNSTEADY"),
            flush=True,
        )
        row = {"shape": cell.name, "engine": engine, **asdict(cell), **figures, "warm_up": warm_up}
        self.measured.append(row)
        self.write()

    def failed(self, why: str) -> None:
        """Keep and print a failure."""
        print(f"FAILED: {why}", flush=True)
        self.failures.append(why)
        self.write()

    def write(self) -> None:
        """Write everything, whole or not at all."""
        shapes = summary(self.measured)
        omitted = {"left_out": self.left_out, "failures": self.failures}
        document = {**self.head, **omitted, "shapes": shapes, "measured": self.measured}
        draft = self._path.with_suffix(".part")
        draft.write_text(json.dumps(document, indent=1))
        draft.replace(self._path)


def summary(measured: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return requests per second and ratios per shape; medians where something was measured repeatedly.

    Warm-ups are left out, and so is what was unsteady, where the same was measured in a steady state too.
    """
    cells: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for one in measured:
        if not one["warm_up"]:
            cells.setdefault((one["shape"], one["engine"], one["end"], one["tokens"]), []).append(one)
    counted: dict[str, list[dict[str, Any]]] = {}
    unsteady: dict[str, list[str]] = {}
    for (name, engine, end, tokens), repeated in cells.items():
        steady = [one for one in repeated if is_steady(one)]
        counted.setdefault(name, []).extend(steady or repeated)
        if not steady:
            unsteady.setdefault(name, []).append(f"{engine}, {end} {tokens}")
    return [{**_of_shape(name, rows), "unsteady": unsteady.get(name, [])} for name, rows in counted.items()]


def _of_shape(name: str, measured: list[dict[str, Any]]) -> dict[str, Any]:
    def rates(engine: str, end: str, tokens: int = 0) -> list[float]:
        wanted = (engine, end, tokens)
        return [one["requests_per_s"] for one in measured if (one["engine"], one["end"], one["tokens"]) == wanted]

    plain, idle, ceiling = rates("plain", "full"), rates("plugin", "full"), rates("plugin", "budget", 1)
    plan = planned(Cell(measured[0]["prompt"], measured[0]["output"], measured[0]["shared"]))
    rows = []
    for tokens in sorted({one["tokens"] for one in measured if one["end"] == "budget"}):
        budget, cap = rates("plugin", "budget", tokens), rates("plain", "cap", tokens)
        rows.append(
            {
                "tokens": tokens,
                "planner_ratios": [ratio for ratio, n in plan.items() if n == tokens],
                "requests_per_s": _median(budget),
                "plain_cap_requests_per_s": _median(cap),
                "over_plain": _ratio(budget, plain),
                "of_ceiling": _ratio(budget, ceiling),
                "over_same_max_tokens": _ratio(budget, cap),
                "pairs": _pairs(budget, cap),
            }
        )
    return {
        "shape": name,
        "plain_requests_per_s": _median(plain),
        "idle_requests_per_s": _median(idle),
        "idle_over_plain": _ratio(idle, plain),
        "idle_pairs": _pairs(idle, plain),
        "plain_ceiling_over_plain": _ratio(rates("plain", "cap", 1), plain),
        "budgets": rows,
    }


def _median(values: list[float]) -> float | None:
    return statistics.median(values) if values else None


def _ratio(ours: list[float], theirs: list[float]) -> float | None:
    return statistics.median(ours) / statistics.median(theirs) if ours and theirs else None


def _pairs(ours: list[float], theirs: list[float]) -> list[float]:
    return [round(a / b, 4) for a, b in zip(ours, theirs, strict=False)]


def table(shapes: list[dict[str, Any]]) -> str:
    """Return the summary as text."""
    lines = []
    for one in shapes:
        lines.append(
            f"{one['shape']}: plain {_show(one['plain_requests_per_s'], '.2f')} req/s, plugin idle / plain "
            f"{_show(one['idle_over_plain'], '.3f')} {one['idle_pairs']}, max_tokens=1 on plain "
            f"{_show(one['plain_ceiling_over_plain'], '.2f')}x"
        )
        for row in one["budgets"]:
            ratios = " and ".join(row["planner_ratios"])
            plan = f"  planner's N, {ratios} of the prompt" if ratios else ""
            lines.append(
                f"  budget {row['tokens']:>3}: {_show(row['requests_per_s'], '8.2f')} req/s, "
                f"{_show(row['over_plain'], '5.2f')}x plain, {_show(row['of_ceiling'], '.3f')} of the ceiling, "
                f"{_show(row['over_same_max_tokens'], '.3f')} of the same max_tokens{plan}"
            )
        if one["unsteady"]:
            lines.append(f"  UNSTEADY, with whatever is a ratio to it: {'; '.join(one['unsteady'])}")
    return "\n".join(lines)


def _show(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
