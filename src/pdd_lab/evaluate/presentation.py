"""The figures as tables, and as one picture: quality against the share of tokens kept, a line per refiner."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from pdd_cli.plots.style import BLACK, BLUE, GREEN, GREY, VERMILLION, figure, heading, legend, save
from pdd_lab.evaluate.evaluation_settings import INFORMED

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from rich.table import Table

TITLES = {
    "agreement": "Top-1 agreement with the full prompt's answer, next 64 tokens",
    "recall": "Recall of hidden numbers, exact",
    "answers": "Answers from real text, exact",
}

COLOURS = {INFORMED: BLACK, "attention": BLUE, "lexical": VERMILLION, "truncation": GREEN, "random": GREY}
_TITLE_WIDTH = 44
"""Characters of a title that fit above one panel."""
MARKERS = {INFORMED: "D", "attention": "o", "lexical": "s", "truncation": "^", "random": "x"}


def tables(figures: Mapping[str, Any]) -> list[Table]:
    """Return the tables of an evaluation: one per metric, refiners down, ratios across."""
    made = []
    for name, task in figures["tasks"].items():
        count = f"{task['scored']} cases, of {task['tried']} tried; {task['spread']} would not be refined"
        made.append(_by_ratio(f"{TITLES.get(name, name)} (%): {count}", task, _percent))
        if any(row["evidence"] for row in task["settings"]):
            made.append(_by_ratio(f"Evidence wholly kept (%): {count}", task, _evidence))
        if any(row["kl"] for row in task["settings"]):
            made.append(_by_ratio(f"KL from the full prompt, nats per token: {count}", task, _nats))
    return [*made, _guard(figures["guard"])]


def _by_ratio(title: str, task: Mapping[str, Any], cell: Callable[[Mapping[str, Any]], str]) -> Table:
    from rich.table import Table

    rows = {(row["refiner"], row["ratio"]): cell(row) for row in task["settings"]}
    ratios = sorted({ratio for refiner, ratio in rows if refiner != "none"})
    table = Table(title=title, title_justify="left", title_style="bold")
    table.add_column("kept")
    for ratio in ratios:
        table.add_column(f"{ratio:g}", justify="right")
    for refiner in dict.fromkeys(refiner for refiner, _ in rows):
        if refiner != "none":
            table.add_row(refiner, *(rows.get((refiner, ratio), "") for ratio in ratios))
    if bottom := [value for (refiner, _), value in rows.items() if refiner == "none"]:
        table.add_section()
        table.add_row("protected alone", bottom[0])
    return table


def _guard(guard: Mapping[str, Any]) -> Table:
    from rich.table import Table

    refiner, ratio = guard["bad"]
    table = Table(title="The guard: how often it fires (%)", title_justify="left", title_style="bold")
    columns = ("task", "cloud's tokens", "nats", f"{refiner} {ratio:g}", "ratio 1", "false alarms", "misses")
    for column in columns:
        table.add_column(column, justify="left" if column == "task" else "right")
    for name, counts in guard["tasks"].items():
        for by_tokens in counts:
            for row in by_tokens["thresholds"]:
                if row["threshold"] != guard["threshold"]:
                    continue  # the others are in the JSON file
                rates = [row[key]["mean"] for key in ("bad", "ratio_1", "false_alarms", "misses")]
                cells = ["" if rate is None else f"{100 * rate:.1f}" for rate in rates]
                table.add_row(name, str(by_tokens["tokens"]), f"{row['threshold']:g}", *cells)
            table.add_section()
    return table


def _percent(row: Mapping[str, Any]) -> str:
    score = row["score"]
    return f"{100 * score['mean']:.0f} ({100 * score['low']:.0f}-{100 * score['high']:.0f})"


def _evidence(row: Mapping[str, Any]) -> str:
    return f"{100 * row['evidence']['mean']:.0f}"


def _nats(row: Mapping[str, Any]) -> str:
    return f"{row['kl']['mean']:.2f}"


def draw(figures: Mapping[str, Any], target: Path) -> None:
    """Write `target`, a PNG, and an SVG beside it.

    Bands are 95 % intervals; the dotted line has the protected tokens alone.
    """
    panels = [(name, task, "score") for name, task in figures["tasks"].items()]
    panels += [(name, task, "kl") for name, task, _ in panels if any(row["kl"] for row in task["settings"])]
    columns = min(2, max(1, len(panels)))
    rows_of_panels = max(1, -(-len(panels) // columns))
    picture, all_axes = figure(rows_of_panels, columns, width=4.6 * columns, height=3.6 * rows_of_panels)
    for axes in all_axes[len(panels) :]:
        axes.set_axis_off()
    for axes, (name, task, metric) in zip(all_axes, panels, strict=False):
        rows = task["settings"]
        for refiner in dict.fromkeys(row["refiner"] for row in rows):
            points = sorted(
                (row["ratio"], row[metric]) for row in rows if row["refiner"] == refiner and row[metric]
            )
            if refiner == "none":
                axes.axhline(points[0][1]["mean"], linestyle=":", color=BLACK, linewidth=1)
                continue
            ratios = [ratio for ratio, _ in points]
            colour, marker = COLOURS.get(refiner, BLACK), MARKERS.get(refiner, ".")
            means = [value["mean"] for _, value in points]
            axes.plot(ratios, means, label=refiner, color=colour, marker=marker)
            low, high = ([value[end] for _, value in points] for end in ("low", "high"))
            axes.fill_between(ratios, low, high, color=colour, alpha=0.15, linewidth=0)
        title = TITLES.get(name, name) if metric == "score" else "KL from the full prompt, nats per token"
        heading(axes, textwrap.fill(f"{title}, {task['scored']} cases", _TITLE_WIDTH))
        axes.set_xlabel("share of the prompt's tokens kept")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.03 if metric == "score" else None)
        legend(axes)
    save(picture, target)
