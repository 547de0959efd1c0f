"""Puts an answer on the terminal as it is made, and says in one line what became of it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text

from pdd_cli.demo.live_display import STYLES
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from rich.console import Console

    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.session.outcome import Outcome


class Printer:
    """Prints tokens: on a terminal in the colour of who made them, elsewhere as plain text."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._at_line_start = True

    def show(self, token: ShownToken) -> None:
        """Print one token."""
        self.text(token.text, style=STYLES[token.source])

    def text(self, text: str, *, style: str = "") -> None:
        """Print `text` behind what is there."""
        if not text:
            return
        self._at_line_start = text.endswith("\n")
        if self._console.is_terminal:
            self._console.print(Text(text, style=style), end="", soft_wrap=True)
        else:
            self._console.file.write(text)  # byte for byte: it may go into a file or another program
        self._console.file.flush()

    def end(self) -> None:
        """Leave the cursor at the beginning of a line."""
        if not self._at_line_start:
            self._console.file.write("\n")
            self._console.file.flush()
            self._at_line_start = True


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
    if outcome.cloud_error is not None:
        parts.append(f"cloud: {outcome.cloud_error}")
    parts.append(outcome.finish_reason)
    return " | ".join(parts)
