"""The pictures of measured speeds: a device's, and a cloud's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdd_cli.plots.style import CYCLE, MARKERS, figure, heading, legend, save, shared_legend

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from pdd_lab.bench.cloud_fit import StepCost
    from pdd_lab.bench.cloud_measure import CloudMeasured
    from pdd_lab.bench.device_figures import Rate


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
    for one in axes[:2]:
        one.set_xlim(left=0)
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


def draw_cloud(
    measured: CloudMeasured, cost: StepCost, most_batched: int, target: Path, *, title: str
) -> tuple[Path, Path]:
    """Draw a cloud's timings and the costs fitted to them, and write PNG and SVG; return their paths.

    Raises:
        ConfigurationError: matplotlib is not installed, or `target` has a suffix of another format.
    """
    made, [prefill, decode] = figure(2, height=6.4, title=title)
    heading(prefill, "One prompt on an idle server")
    prefill.plot(
        [one.length for one in measured.prefill],
        [1000 * one.seconds for one in measured.prefill],
        linestyle="none", marker="o", markersize=4, color=CYCLE[0], label="measured",
    )  # fmt: skip
    lengths = np.linspace(1, max(one.length for one in measured.prefill), 200)
    fitted = [1000 * (cost.prefill_s(int(length), most_batched) + measured.rtt_s) for length in lengths]
    prefill.plot(lengths, fitted, color=CYCLE[0], linewidth=1, label="fitted")
    prefill.set_xlabel("tokens of the prompt")
    prefill.set_ylabel("time to first token, ms")
    heading(decode, "Answers at a time")
    for number, prompt in enumerate(sorted({one.prompt_tokens for one in measured.decode})):
        own = [one for one in measured.decode if one.prompt_tokens == prompt]
        colour, marker, what = CYCLE[number], MARKERS[number], f"prompts of {prompt} tokens"
        decode.plot(
            [one.width for one in own],
            [1000 * one.tpot_s for one in own],
            linestyle="none", marker=marker, markersize=4, color=colour, label=f"measured, {what}",
        )  # fmt: skip
        held = np.mean([one.context_tokens / one.width for one in own])
        widths = np.linspace(1, max(one.width for one in own), 50)
        decode.plot(
            widths, [1000 * cost.decode_s(width, width * held) for width in widths],
            color=colour, linewidth=1, label=f"fitted, {what}",
        )  # fmt: skip
    decode.set_xlabel("answers that are made at a time")
    decode.set_ylabel("gap between tokens, ms")
    for axes in (prefill, decode):
        axes.set_ylim(bottom=0)
        axes.set_xlim(left=0)
        legend(axes, loc="best")
    return save(made, target)
