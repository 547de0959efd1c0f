"""Draws a benchmark's JSON as PNG and SVG beside it.

python benchmarks/gpu/plots.py offline.json [online.json ...]
"""

import json
import math
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def draw_if_possible(path: Path) -> None:
    """Draw `path`, or say how to draw it elsewhere."""
    if find_spec("matplotlib") is None:
        print(f"matplotlib is not installed: draw it elsewhere with plots.py {path}")
        return
    print(f"plots: {', '.join(str(file) for file in draw(path))}")


def draw(path: Path) -> tuple[Path, Path]:
    """Draw `path` and return the files."""
    from pdd_cli.plots import style  # here, since the figures may be made where nothing can be drawn

    document = json.loads(path.read_text())
    draws = {"offline": _offline, "online": _online, "end to end": _end_to_end}
    return style.save(draws[document["benchmark"]](document, style), path.with_suffix(".png"))


def _offline(document: dict[str, Any], style: Any) -> Any:
    shapes = [one for one in document["shapes"] if one["plain_requests_per_s"] and one["budgets"]]
    made, (axes,) = style.figure(
        width=9, height=4.5, title="Requests per second by decode budget N, over plain vLLM's"
    )
    bars: list[tuple[str, Any]] = [*[(f"N = {n}", n) for n in (1, 8, 16, 64)], ("planner's N", None)]
    width = 0.84 / len(bars)
    for index, (label, tokens) in enumerate(bars):
        heights = [_over_plain(one, tokens) for one in shapes]
        places = [place + (index - (len(bars) - 1) / 2) * width for place in range(len(shapes))]
        drawn = axes.bar(places, heights, width, label=label, color=style.CYCLE[index])
        axes.bar_label(drawn, [f"{h:.1f}" if h else "" for h in heights], fontsize=style.NOTE_SIZE - 2, padding=1)
    axes.set_yscale("log")
    axes.set_yticks([1, 2, 5, 10, 20, 50], ["1", "2", "5", "10", "20", "50"])
    axes.minorticks_off()
    axes.axhline(1, color=style.BLACK, linewidth=0.8)
    axes.set_xticks(range(len(shapes)), [one["shape"].replace(", ", "\n") for one in shapes])
    axes.set_xlabel("prompt / answer (tokens)")
    axes.set_ylabel("times plain vLLM's")
    style.shared_legend(made, columns=len(bars))
    return made


def _over_plain(shape: dict[str, Any], tokens: int | None) -> float:
    """Return the height of a bar; `tokens` None is what the planner sets for a device that reads all."""
    for row in shape["budgets"]:
        if (row["tokens"] == tokens) if tokens is not None else ("1" in row["planner_ratios"]):
            return row["over_plain"] or 0
    return 0


def _online(document: dict[str, Any], style: Any) -> Any:
    made, (ttft, tpot) = style.figure(1, 2, width=10, title="Latency by load; dashed: the limit")
    for index, kind in enumerate(dict.fromkeys(run["kind"] for run in document["runs"])):
        runs = [run for run in document["runs"] if run["kind"] == kind]
        runs.sort(key=lambda run: run["arrived_per_s"])
        rates = [run["arrived_per_s"] for run in runs]
        look = {"label": kind, "color": style.CYCLE[index], "marker": style.MARKERS[index]}
        ttft.plot(rates, [run["ttft_p99_s"] for run in runs], **look)
        # a run that was ended early may have no answer of two tokens
        tpot.plot(rates, [run["tpot_p99_ms"] or math.nan for run in runs], **look)
    limits = document["limits"]
    ttft.axhline(limits["ttft_s"], color=style.BLACK, linestyle="--", linewidth=1)
    tpot.axhline(limits["tpot_ms"], color=style.BLACK, linestyle="--", linewidth=1)
    ttft.set_yscale("log")
    for axes, what in ((ttft, "p99 TTFT (s)"), (tpot, "p99 TPOT of the cloud's tokens (ms)")):
        axes.set_xlabel("requests per second that arrived")
        axes.set_ylabel(what)
        style.legend(axes)
    return made


def _end_to_end(document: dict[str, Any], style: Any) -> Any:
    made, (ttft, gaps) = style.figure(1, 2, width=10, title="Each point is one answer; dashed: the target gap")
    modes = document["modes"]
    for index, mode in enumerate(modes):
        answers = [one for one in document["answers"] if one["mode"] == mode]
        places = [index + 0.3 * (i / max(1, len(answers) - 1) - 0.5) for i in range(len(answers))]
        look = {"color": style.CYCLE[index], "marker": style.MARKERS[index], "linestyle": "none", "alpha": 0.8}
        ttft.plot(places, [one["ttft_s"] for one in answers], **look)
        gaps.plot(places, [1000 * one["gap_max_s"] for one in answers], **look)
    gaps.axhline(1000 / document["rate"], color=style.BLACK, linestyle="--", linewidth=1)
    ttft.set_yscale("log")
    for axes, what in ((ttft, "time to first token (s)"), (gaps, "longest gap of the answer (ms)")):
        axes.set_xticks(range(len(modes)), [mode.replace("_", " ") for mode in modes])
        axes.set_xlim(-0.5, len(modes) - 0.5)
        style.heading(axes, what)
    return made


if __name__ == "__main__":
    for name in sys.argv[1:]:
        print(*draw(Path(name)))
