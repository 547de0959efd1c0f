"""The picture of a replay: each request's wait over time, how the waits are distributed, and one answer."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_cli.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    PURPLE,
    VERMILLION,
    figure,
    heading,
    legend,
    plain_log_ticks,
    save,
    shared_legend,
)
from pdd_cli.plots.timeline import draw_answer

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from pdd_cli.plots.timeline import PlottedAnswer

_MODES = {
    "handoff": ("handed off", GREEN, "s"),
    "cloud_only": ("cloud alone", BLUE, "o"),
    "device_only": ("device alone", PURPLE, "^"),
}
_MOST_POINTS = 1500
"""Requests that can be told apart in a picture."""
_BINS = 80
"""Parts of the time, where there are more."""
_LEAST_MS = 1.0
"""Shortest time on the logarithmic axes: what is less is nothing that anyone waits for."""


def draw_replay(
    answers: Sequence[Mapping[str, Any]], one: PlottedAnswer | None, target: Path, *, title: str
) -> tuple[Path, Path]:
    """Draw the picture, and write PNG and SVG; return their paths.

    Args:
        answers: objects as in the report's `answers`.
        one: an answer to draw token by token, where its tokens are known.
        target: where to.
        title: what was replayed.

    Raises:
        ConfigurationError: matplotlib is not installed, or `target` has a suffix of another format.
    """
    rows = 2 if one is None else 3
    made, axes = figure(rows, height=1.0 + 2.7 * rows, title=title)
    _draw_waits(axes[0], answers)
    _draw_shares(axes[1], answers)
    if one is not None:
        draw_answer(axes[2], one)
        axes[2].set_xlabel("seconds since the request was due")
        axes[2].set_xlim(left=0)
        axes[2].set_ylim(0, max(1, len(one.shown_at)) * 1.25)
        shared_legend(made, of=axes[2:])
    return save(made, target)


def _draw_waits(axes: Axes, answers: Sequence[Mapping[str, Any]]) -> None:
    if len(answers) > _MOST_POINTS:
        _draw_wait_over_time(axes, answers)
    else:
        _draw_every_wait(axes, answers)
    failed = [one["due_s"] for one in answers if one["error"] is not None]
    if failed:
        axes.plot(
            failed, [0.03] * len(failed),
            linestyle="none", marker="x", color=VERMILLION, label="failed", transform=axes.get_xaxis_transform(),
        )  # fmt: skip
    axes.set_yscale("log")
    plain_log_ticks(axes.yaxis)
    axes.set_xlabel("seconds since the start, when the request was due")
    axes.set_ylabel("TTFT, ms")
    if axes.get_legend_handles_labels()[0]:
        legend(axes, loc="best")


def _draw_wait_over_time(axes: Axes, answers: Sequence[Mapping[str, Any]]) -> None:
    """Draw many requests' waits: the median in each part of the time, and up to where 99 % are."""
    heading(axes, f"Wait for the first token, {len(answers):,} requests")
    done = [(one["due_s"], 1000 * one["ttft_s"]) for one in answers if one["seconds"] is not None]
    if not done:
        return
    due, waits = np.array(done).T
    edges = np.linspace(due.min(), due.max() + 1e-9, _BINS + 1)
    parts = [(edge, waits[(due >= edge) & (due < after)]) for edge, after in pairwise(edges)]
    filled = [(edge, np.percentile(part, (50, 99))) for edge, part in parts if part.size]
    where = [edge + (edges[1] - edges[0]) / 2 for edge, _ in filled]
    middle, most = np.maximum(_LEAST_MS, [values for _, values in filled]).T
    axes.plot(where, middle, color=BLUE, label="median")
    axes.fill_between(where, middle, most, color=BLUE, alpha=0.2, linewidth=0, label="up to the 99th percentile")


def _draw_every_wait(axes: Axes, answers: Sequence[Mapping[str, Any]]) -> None:
    heading(axes, "Wait for the first token, request by request")
    for mode, (label, colour, marker) in _MODES.items():
        own = [one for one in answers if one["mode"] == mode and one["seconds"] is not None]
        if own:
            axes.plot(
                [one["due_s"] for one in own],
                [max(_LEAST_MS, 1000 * one["ttft_s"]) for one in own],
                linestyle="none", marker=marker, markersize=4, color=colour, alpha=0.7, label=label,
            )  # fmt: skip


def _draw_shares(axes: Axes, answers: Sequence[Mapping[str, Any]]) -> None:
    heading(axes, "Share of requests that waited no longer")
    for key, label, colour, style in (
        ("ttft_s", "for the first token", BLUE, "-"),
        ("longest_gap_s", "between two tokens, at the most", VERMILLION, "--"),
    ):
        waits = np.sort([max(_LEAST_MS, 1000 * one[key]) for one in answers if one[key] is not None])
        if waits.size:
            shares = np.arange(1, waits.size + 1) / waits.size
            axes.step(waits, 100 * shares, where="post", color=colour, linestyle=style, label=label)
    axes.axhline(99, color=BLACK, linewidth=0.7, linestyle=":")
    axes.set_xscale("log")
    plain_log_ticks(axes.xaxis)
    axes.set_xlabel("wait, ms")
    axes.set_ylabel("requests, %")
    axes.set_ylim(0, 101)
    if axes.get_legend_handles_labels()[0]:
        legend(axes, loc="best")
