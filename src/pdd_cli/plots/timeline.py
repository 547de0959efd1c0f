"""The token timeline of answers: what had been received and what had been shown, by whom, at every moment."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from pdd_cli.plots.style import CLOUD, DEVICE, GREY, NOTE_SIZE, STALL, figure, heading, save, shared_legend
from pdd_core.qoe import STALL_GAPS
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from matplotlib.axes import Axes

    from pdd_llamacpp_adapter.session.outcome import Outcome

_COLOURS = {Source.CLOUD: CLOUD, Source.DEVICE: DEVICE}
_NOTE_WIDTH = 0.2
"""Share of the picture's width that the words of a moment take."""
_MARKERS = {Source.CLOUD: "o", Source.DEVICE: "s"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PlottedAnswer:
    """One answer, ready to be drawn. Times are seconds since the request."""

    title: str
    received_at: Sequence[float]
    """Of each token, in order; empty where only the shown ones are known."""
    received_as: str = "received, or made on the device"
    """The legend's words for that."""
    shown_at: Sequence[float]
    source: Sequence[Source]
    """Of each token."""
    rate: float = math.inf
    """Tokens per second that were aimed at; ``inf`` marks no gap as too long."""
    caught_up_at: float | None = None
    """When the device had processed the prompt and all tokens received by then."""
    took_over_at: float | None = None

    @classmethod
    def of(cls, outcome: Outcome, *, title: str, rate: float) -> Self:
        """Return what became of an answer that was shown at `rate`."""
        tokens = outcome.timeline.tokens
        return cls(
            title=title,
            received_at=[token.received_at for token in tokens],
            shown_at=[token.shown_at for token in tokens],
            source=[token.source for token in tokens],
            rate=rate,
            caught_up_at=outcome.caught_up_at,
            took_over_at=outcome.took_over_at,
        )

    def stalls(self) -> list[int]:
        """Return the indices of the tokens that came noticeably later than aimed at."""
        longest = STALL_GAPS / self.rate
        return [
            index
            for index in range(1, len(self.shown_at))
            if self.rate < math.inf and self.shown_at[index] - self.shown_at[index - 1] > longest
        ]


def draw_timeline(
    answers: Sequence[PlottedAnswer], target: Path, *, title: str | None = None
) -> tuple[Path, Path]:
    """Draw `answers` one below the other over the same seconds, and write PNG and SVG; return their paths.

    Raises:
        ConfigurationError: matplotlib is not installed, or `target` has a suffix of another format.
    """
    height = 1.3 + 2.3 * len(answers)
    made, panels = figure(len(answers), height=height, title=title, sharex=True, sharey=True)
    for axes, answer in zip(panels, answers, strict=True):
        draw_answer(axes, answer)
    panels[-1].set_xlabel("seconds since the request")
    panels[-1].set_xlim(left=0)
    most = max((len(answer.shown_at) for answer in answers), default=0)
    panels[-1].set_ylim(0, max(1, most) * 1.25)  # the words at the top need their room
    shared_legend(made)
    return save(made, target)


def draw_answer(axes: Axes, answer: PlottedAnswer) -> None:
    """Draw one answer into `axes`; the axes' limits and the legend are the caller's."""
    counts = {source: list(answer.source).count(source) for source in Source}
    parts = [f"{count} by the {source}" for source, count in counts.items() if count]
    whole = (
        parts[0].replace(" by", " tokens by")
        if len(parts) == 1
        else ", ".join([f"{sum(counts.values())} tokens", *parts])
    )
    heading(axes, f"{answer.title}: {whole}" if parts else f"{answer.title}: no token")
    axes.set_ylabel("tokens of the answer")
    if answer.caught_up_at:
        axes.axvspan(
            0, answer.caught_up_at, ymax=0.035, color=DEVICE, alpha=0.45, linewidth=0,
            label="device reads the prompt",
        )  # fmt: skip
    if not answer.shown_at:
        return
    _draw_received(axes, answer)
    _draw_shown(axes, answer)
    _mark_stalls(axes, answer)
    _mark_moments(axes, answer)


def _draw_received(axes: Axes, answer: PlottedAnswer) -> None:
    if len(answer.received_at) != len(answer.shown_at):
        return
    numbers = range(1, len(answer.shown_at) + 1)
    axes.step(answer.received_at, numbers, where="post", color=GREY, linewidth=1, label=answer.received_as)
    if answer.received_at == answer.shown_at:
        return
    axes.fill_betweenx(
        numbers, answer.received_at, answer.shown_at,
        color=GREY, alpha=0.15, linewidth=0, label="at hand, not shown yet",
    )  # fmt: skip


def _draw_shown(axes: Axes, answer: PlottedAnswer) -> None:
    for source in Source:
        own = [index for index, maker in enumerate(answer.source) if maker is source]
        if own:
            axes.plot(
                [answer.shown_at[index] for index in own],
                [index + 1 for index in own],
                linestyle="none",
                marker=_MARKERS[source],
                markersize=3,
                color=_COLOURS[source],
                label=f"shown, made by the {source}",
            )


def _mark_stalls(axes: Axes, answer: PlottedAnswer) -> None:
    stalls, shown = answer.stalls(), answer.shown_at
    for index in stalls:
        axes.plot(
            shown[index - 1 : index + 1], [index, index], color=STALL, linewidth=4, solid_capstyle="butt",
            label=f"gap above {STALL_GAPS:g} x {1000 / answer.rate:.0f} ms, the target",
        )  # fmt: skip
    if stalls:
        longest = max(stalls, key=lambda index: shown[index] - shown[index - 1])
        _note(
            axes, f"{shown[longest] - shown[longest - 1]:.2f} s", (shown[longest], longest), "data", (4, -10),
            color=STALL,
        )  # fmt: skip


def _mark_moments(axes: Axes, answer: PlottedAnswer) -> None:
    """Mark the first token, the device's readiness and the handoff by a line and its words at the top."""
    moments = [(answer.shown_at[0], "first token")]
    ready, over = answer.caught_up_at, answer.took_over_at
    if over is not None:
        moments.append((over, "device takes over"))
    elif ready is not None and ready > answer.shown_at[0]:
        moments.append((ready, "device ready"))
    width = answer.shown_at[-1] * _NOTE_WIDTH
    for number, (at, text) in enumerate(sorted(moments)):
        axes.axvline(at, color="black", linewidth=0.9, linestyle=(0, (4, 3)))
        # words of two moments that lie close together stand on either side of them, or one lower than the other
        crowded = len(moments) > 1 and abs(moments[0][0] - moments[1][0]) < width
        leftwards, lower = (
            crowded and number == 0 and at > width,
            crowded and number == 1 and moments[0][0] <= width,
        )
        _note(
            axes, f"{text}\n{at:.2f} s", (at, 1), ("data", "axes fraction"),
            (-4 if leftwards else 4, -26 if lower else -2), ha="right" if leftwards else "left",
        )  # fmt: skip


def _note(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    coordinates: str | tuple[str, str],
    offset: tuple[float, float],
    *,
    color: str = "black",
    ha: str = "left",
) -> None:
    note = axes.annotate(
        text, at, offset, xycoords=coordinates, textcoords="offset points",
        ha=ha, va="top", fontsize=NOTE_SIZE, color=color,
    )  # fmt: skip
    note.set_in_layout(False)  # else a moment near the edge would squeeze the axes
