"""The arithmetic of `kv_handover.py`: what a cell's answers come to, which cells are unsteady, and the table."""

import statistics
from collections import Counter
from dataclasses import dataclass

UNSTEADY = 0.1
"""Medians of a cell's rounds that differ by more than this share of their mean are measured again."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One way to answer, over one link."""

    way: str
    """``device_only``, ``handoff``, ``refined``, ``kv`` or ``cloud_only``."""
    link: str | None = None

    @property
    def name(self) -> str:
        return self.way if self.link is None else f"{self.way} {self.link}"


def planned(ways: list[str], links: list[str], text_link: str) -> list[Cell]:
    """Return the cells to measure: tokens alone need hardly any bytes, so those ways have one link only."""
    cells = []
    for way in ways:
        of_way = {"device_only": [None], "kv": links}.get(way, [text_link])
        cells += [Cell(way, link) for link in of_way]
    return cells


def quantile(values: list[float], share: float) -> float:
    """Return the nearest-rank quantile."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def figures(answers: list[dict]) -> dict:
    """Return what one cell's answers come to; None where a figure does not exist."""
    took_over = [one["took_over_at"] for one in answers if one["took_over_at"] is not None]
    cells = [one["kv"] for one in answers if one["kv"] is not None]
    came = [one for one in cells if one["bytes"] and one["seconds"] > 0]
    return {
        "answers": len(answers),
        "ttft_s": _spread([one["ttft_s"] for one in answers]),
        "took_over": len(took_over),
        "took_over_s": _spread(took_over),
        "cloud_tokens": statistics.fmean(one["cloud_tokens"] for one in answers),
        "cloud_tokens_max": max(one["cloud_tokens"] for one in answers),
        "tokens": statistics.fmean(one["tokens"] for one in answers),
        "longest_gap_ms": _spread([1000 * one["gap_max_s"] for one in answers]),
        "stalls": sum(one["stalls"] for one in answers),
        "extensions": sum(one["extensions"] for one in answers),
        "mb": statistics.fmean(one["bytes"] for one in cells) / 1e6 if cells else None,
        "cells": statistics.fmean(one["cells"] for one in cells) if cells else None,
        "prefilled": statistics.fmean(one["prefilled"] for one in cells) if cells else None,
        "mbit_s": statistics.median(8e-6 * one["bytes"] / one["seconds"] for one in came) if came else None,
        "no_cells": dict(Counter(one["reason"] for one in cells if one["reason"] is not None)),
        "guard": dict(Counter(guard for one in answers if (guard := _guard(one)) is not None)),
        "errors": sorted({one["cloud_error"] for one in answers if one["cloud_error"]}),
    }


def _guard(answer: dict) -> str | None:
    return (answer["kv"] or answer["refinement"] or {}).get("guard")


def _spread(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"p50": statistics.median(values), "p99": quantile(values, 0.99)}


def ready_s(answers: list[dict]) -> float:
    """Return the median time until a device made tokens; where it never did, the answer's end stands for it."""
    return statistics.median(
        one["ttft_s"] if one["mode"] == "device_only" else one["took_over_at"] or one["shown_at"][-1]
        for one in answers
    )


def unsteadiness(rounds: list[float]) -> float:
    """Return how far medians of rounds lie apart, over their mean; 0 for a single one."""
    return (max(rounds) - min(rounds)) / statistics.fmean(rounds)


def summary(cells: list[Cell], answers: list[dict]) -> list[dict]:
    """Return one row per cell that has answers, with ratios to other ways of the same run."""
    rows = []
    for cell in cells:
        own = [one for one in answers if (one["mode"], one["link"]) == (cell.way, cell.link)]
        if not own:
            continue
        by_round: dict[int, list[dict]] = {}
        for one in own:
            by_round.setdefault(one["round"], []).append(one)
        apart = unsteadiness([ready_s(of_round) for of_round in by_round.values()])
        row = {"way": cell.way, "link": cell.link, **figures(own), "ready_s": ready_s(own)}
        rows.append({**row, "rounds": len(by_round), "apart": apart, "steady": apart <= UNSTEADY})
    first = {row["way"]: row for row in reversed(rows)}
    for row in rows:
        alone, handoff = first.get("device_only"), first.get("handoff")
        row["ttft_over_alone"] = row["ttft_s"]["p50"] / alone["ttft_s"]["p50"] if alone else None
        row["ready_over_alone"] = row["ready_s"] / alone["ready_s"] if alone else None
        row["cloud_tokens_over_handoff"] = row["cloud_tokens"] / handoff["cloud_tokens"] if handoff else None
    return rows


_HEAD = (
    "| way | link | answers | TTFT p50, p99 | took over p50, p99 | of them | cloud tokens | longest gap p99 | "
    "stalls | MB | Mbit/s | TTFT / alone | ready / alone | cloud tokens / handoff | guard | steady |"
)


def table(rows: list[dict]) -> str:
    """Return the summary as a Markdown table."""
    lines = [_HEAD, "|" + "---|" * _HEAD.count(" | ") + "---|"]
    for row in rows:
        values = [
            row["way"], row["link"] or "", str(row["answers"]), _seconds(row["ttft_s"]),
            _seconds(row["took_over_s"]), str(row["took_over"]),
            f"{row['cloud_tokens']:.1f} of {row['tokens']:.0f}",
            f"{row['longest_gap_ms']['p99']:.0f} ms", str(row["stalls"]), _number(row["mb"], 1),
            _number(row["mbit_s"], 0), _number(row["ttft_over_alone"], 3), _number(row["ready_over_alone"], 3),
            _number(row["cloud_tokens_over_handoff"], 3),
            ", ".join(f"{count} {verdict}" for verdict, count in {**row["guard"], **row["no_cells"]}.items()),
            "yes" if row["steady"] else f"{100 * row['apart']:.0f} % apart",
        ]  # fmt: skip
        lines.append("| " + " | ".join(values) + " |")
    return "\n".join(lines)


def _seconds(spread: dict[str, float] | None) -> str:
    return "" if spread is None else f"{spread['p50']:.2f} s, {spread['p99']:.2f} s"


def _number(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"
