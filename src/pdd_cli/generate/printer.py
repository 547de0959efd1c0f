"""Puts an answer on the terminal as it is made, and says in one line what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.console import Group
from rich.live import Live
from rich.text import Text

from pdd_cli.demo.live_display import STYLES
from pdd_cli.kv_handover import cells_summary
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.session.outcome import Outcome


class Printer:
    """Prints tokens: on a terminal in the colour of who made them, elsewhere as plain text."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._at_line_start = True
        self._live: Live | None = None
        self._line = Text()
        self._status: Callable[[], str] = str

    def watch(self, status: Callable[[], str]) -> None:
        """Show `status` below the answer, on a terminal, until the device goes on or the answer ends."""
        if not self._console.is_terminal or self._live is not None:
            return
        self._status = status
        self._live = Live(
            console=self._console, get_renderable=self._render, refresh_per_second=10, transient=True
        )
        self._live.start()

    def show(self, token: ShownToken) -> None:
        """Print one token."""
        if token.source is Source.DEVICE:
            self._unwatch()
        self.text(token.text, style=STYLES[token.source])

    def text(self, text: str, *, style: str = "") -> None:
        """Print `text` behind what is there."""
        if not text:
            return
        self._at_line_start = text.endswith("\n")
        if self._live is not None:
            self._line.append(text, style=style)
            *finished, self._line = self._line.wrap(self._console, self._console.width) or [Text()]
            for line in finished:
                self._console.print(line)
        elif self._console.is_terminal:
            self._console.print(Text(text, style=style), end="", soft_wrap=True)
        else:
            self._console.file.write(text)  # byte for byte: it may go into a file or another program
        self._console.file.flush()

    def end(self) -> None:
        """Leave the cursor at the beginning of a line."""
        self._unwatch()
        if not self._at_line_start:
            self._console.file.write("\n")
            self._console.file.flush()
            self._at_line_start = True

    def _unwatch(self) -> None:
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        self._console.print(self._line, end="", soft_wrap=True)
        self._line = Text()

    def _render(self) -> RenderableType:
        return Group(self._line, Text(self._status(), style="dim", no_wrap=True, overflow="ellipsis"))


def outcome_line(outcome: Outcome) -> str:
    """Return who made the answer, how fast, and how it ended."""
    timeline = outcome.timeline
    counts = [(source, timeline.count(source)) for source in Source]
    made_by = " + ".join(f"{count} {source}" for source, count in counts if count)
    parts = [f"{len(timeline.tokens)} tokens" + (f" ({made_by})" if made_by else "")]
    if timeline.ttft is not None:
        parts.append(f"first after {timeline.ttft:.2f} s")
    if outcome.took_over_at is not None:
        parts.append(f"device took over at {outcome.took_over_at:.2f} s")
    if timeline.tpot_max is not None:
        parts.append(f"longest gap {timeline.tpot_max * 1000:.0f} ms")
    if outcome.refinement is not None and outcome.refinement.saved_tokens:
        parts.append(f"refinement saved {outcome.refinement.saved_tokens} prompt tokens")
    if cells := cells_summary(outcome):
        parts.append(cells)
    if outcome.cloud_error is not None:
        parts.append(f"cloud: {outcome.cloud_error}")
    parts.append(outcome.finish_reason)
    return " | ".join(parts)
