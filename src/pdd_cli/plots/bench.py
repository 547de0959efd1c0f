"""The pictures of measured speeds: a device's, and a cloud's."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_cli.plots.style import CYCLE, MARKERS, figure, heading, save, shared_legend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from pdd_cli.bench.device_figures import Rate


def draw_device(rates: Sequence[Rate], target: Path, *, title: str) -> tuple[Path, Path]:
    """Draw a device's speeds, and write PNG and SVG; return their paths. Bands are the least and the greatest.

    Raises:
        ConfigurationError: matplotlib is not installed, or `target` has a suffix of another format.
    """
    made, axes = figure(3, height=8.4, title=title)
    for one, kind, what, over in (
        (axes[0], "prefill", "Reading a prompt (prefill)", "tokens already in the context"),
        (axes[1], "decode", "Writing an answer (decode)", "tokens already in the context"),
        (axes[2], "batch", "Taking in received tokens, several at once", "tokens at once"),
    ):
        _draw_rates(one, [rate for rate in rates if rate.kind == kind])
        heading(one, what)
        one.set_xlabel(over)
        one.set_ylabel("tokens per second")
        one.set_ylim(bottom=0)
    axes[2].set_xscale("log", base=2)
    axes[2].xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    shared_legend(made, columns=3)
    return save(made, target)


def _draw_rates(axes: Axes, rates: Sequence[Rate]) -> None:
    for number, threads in enumerate(sorted({rate.threads for rate in rates})):
        own = [rate for rate in rates if rate.threads == threads]
        where = [rate.tokens if rate.kind == "batch" else rate.at for rate in own]
        colour, marker = CYCLE[number % len(CYCLE)], MARKERS[number % len(MARKERS)]
        label = f"{threads} {'thread' if threads == 1 else 'threads'}"
        axes.plot(where, [rate.median for rate in own], color=colour, marker=marker, markersize=4, label=label)
        low, high = [rate.low for rate in own], [rate.high for rate in own]
        axes.fill_between(where, low, high, color=colour, alpha=0.15, linewidth=0)
