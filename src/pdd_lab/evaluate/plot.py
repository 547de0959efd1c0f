"""The figures as one picture: quality against the share of tokens kept, a line per refiner."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

from pdd_cli.plots.style import BLACK, BLUE, GREEN, GREY, VERMILLION, figure, heading, legend, save
from pdd_lab.evaluate.evaluation_settings import INFORMED
from pdd_lab.evaluate.table import TITLES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COLOURS = {INFORMED: BLACK, "attention": BLUE, "lexical": VERMILLION, "truncation": GREEN, "random": GREY}
_TITLE_WIDTH = 44
"""Characters of a title that fit above one panel."""
MARKERS = {INFORMED: "D", "attention": "o", "lexical": "s", "truncation": "^", "random": "x"}


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
