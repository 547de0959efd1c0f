"""The figures as one picture: quality against the share of tokens kept, a line per refiner."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_cli.cache import published
from pdd_cli.evaluate.table import TITLES

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

COLOURS = {"attention": "#0072B2", "lexical": "#D55E00", "truncation": "#009E73", "random": "#767676"}
"""Okabe and Ito's, which colour-blind readers tell apart."""
MARKERS = {"attention": "o", "lexical": "s", "truncation": "^", "random": "x"}


def draw(figures: Mapping[str, Any], target: Path) -> None:
    """Write `target`, a PNG. Bands are 95 % intervals; the dotted line has the protected tokens alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [(name, task, "score") for name, task in figures["tasks"].items()]
    panels += [(name, task, "kl") for name, task, _ in panels if any(row["kl"] for row in task["settings"])]
    picture = Figure(figsize=(4.6 * len(panels), 4.2), layout="constrained")
    FigureCanvasAgg(picture)
    for number, (name, task, metric) in enumerate(panels, start=1):
        axes = picture.add_subplot(1, len(panels), number)
        rows = task["settings"]
        for refiner in dict.fromkeys(row["refiner"] for row in rows):
            points = sorted(
                (row["ratio"], row[metric]) for row in rows if row["refiner"] == refiner and row[metric]
            )
            if refiner == "none":
                axes.axhline(points[0][1]["mean"], linestyle=":", color="black", linewidth=1)
                continue
            ratios = [ratio for ratio, _ in points]
            colour, marker = COLOURS.get(refiner, "black"), MARKERS.get(refiner, ".")
            means = [value["mean"] for _, value in points]
            axes.plot(ratios, means, label=refiner, color=colour, marker=marker)
            low, high = ([value[end] for _, value in points] for end in ("low", "high"))
            axes.fill_between(ratios, low, high, color=colour, alpha=0.15, linewidth=0)
        title = TITLES.get(name, name) if metric == "score" else "KL from the full prompt, nats per token"
        axes.set_title(f"{title}\n{task['scored']} cases", fontsize=9)
        axes.set_xlabel("share of the prompt's tokens kept")
        axes.set_xlim(0, 1.02)
        axes.set_ylim(0, 1.03 if metric == "score" else None)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    with published(target) as draft:
        # no date: the same figures make the same file
        picture.savefig(draft, dpi=120, metadata={"Software": None})
