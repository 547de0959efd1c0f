"""The Pareto front: cloud load against stalls, two lines per share of the prompt that devices read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_cli.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    VERMILLION,
    figure,
    save,
    shared_legend,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE)
_MARKERS = ("o", "s", "^", "D")
_LINEAR_BELOW = 0.1
"""Percent: from here on the axis of the stalls is logarithmic."""


def draw(figures: Mapping[str, Any], target: Path) -> tuple[Path, Path]:
    """Write the picture as PNG and SVG; return both paths."""
    points = figures["front"]
    device, trace = figures["device"], figures["trace"]
    title = f"{trace['name']}, {device['name']} at {device['prefill_tps'][0]['value']:g} tok/s prefill"
    picture, (axes,) = figure(width=7.2, height=5.0, title=title)
    axes.set_yscale("symlog", linthresh=_LINEAR_BELOW)
    ratios = list(dict.fromkeys(point["ratio"] for point in points))
    for ratio, colour, marker in zip(ratios, _COLOURS, _MARKERS, strict=False):
        for policy, line in (("planner", "-"), ("fixed", "--")):
            chosen = [point for point in points if (point["policy"], point["ratio"]) == (policy, ratio)]
            axes.plot(
                [point["decode_tokens"] for point in chosen],
                [100 * point["stalled_share"] for point in chosen],
                color=colour,
                marker=marker,
                markerfacecolor=colour if policy == "planner" else "white",
                linestyle=line,
                label=f"{'planner' if policy == 'planner' else 'fixed budget'}, {ratio:.0%} of the prompt read",
            )
    limit = 100 * figures["goals"]["stall_probability"]
    axes.axhline(limit, color=BLACK, linewidth=1, linestyle=":", label=f"limit: {limit:g} %")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes.set_xlabel(f"cloud decode tokens per request (plain serving: {trace['output_tokens_mean']:.0f})")
    axes.set_ylabel("stalled answers (%)")
    shared_legend(picture)
    return save(picture, target)
