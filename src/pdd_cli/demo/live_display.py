"""One answer as it appears: the cloud's tokens in one colour, the device's in another."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from pdd_core.timeline import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import Console, RenderableType

    from pdd_core.timeline import ShownToken

STYLES = {Source.CLOUD: "bright_blue", Source.DEVICE: "bright_green"}


class LiveView:
    """Shows one answer. A context manager.

    A finished line is printed for good and only the last one is redrawn, so an answer may be longer than the
    screen. Without colours the place where the other engine goes on is marked in the text.
    """

    def __init__(self, console: Console, title: str) -> None:
        self._console = console
        self._title = title
        self.cells: Callable[[], str] = str
        """Tells how far the KV cache is that comes from the cloud; nothing where none does."""
        self._begun = time.monotonic()
        self._line = Text()
        self._source: Source | None = None
        self._counts = dict.fromkeys(Source, 0)
        self._work = ""
        self._quarter = 0
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=10, transient=True)

    def __enter__(self) -> Self:
        self._console.rule(Text(self._title, style="bold"), align="left")
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()
        if self._line:
            self._console.print(self._line)
        self._console.print()

    def progress(self, done: int, total: int, phase: str) -> None:
        """Show how far the device is with its prompt and the tokens it received."""
        what = "prefill" if phase == "prefill" else "catching up"
        self._work = f"device: {what} {done:,} of {total:,} tokens"
        quarter = 4 * done // max(1, total)
        if not self._console.is_terminal and self._source is None and quarter > self._quarter:
            self._quarter = quarter
            self._console.print(self._status(), soft_wrap=True)

    def show(self, token: ShownToken) -> None:
        """Show one token."""
        if token.source is not self._source:
            if self._console.color_system is None:
                self._line.append(f"[{token.source}] ")
            self._source = token.source
            self._work = "" if token.source is Source.DEVICE else self._work
        self._counts[token.source] += 1
        self._line.append(token.text, style=STYLES[token.source])
        *finished, self._line = self._line.wrap(self._console, self._console.width) or [Text()]
        for line in finished:
            self._console.print(line)

    def _render(self) -> RenderableType:
        return Group(self._line, self._status())

    def _status(self) -> Text:
        counts = [f"{count} from the {source}" for source, count in self._counts.items() if count]
        tokens = f"{', '.join(counts)} shown" if counts else "no token yet"
        cells = "" if self._counts[Source.DEVICE] else self.cells()
        parts = [f"{time.monotonic() - self._begun:.0f} s", tokens, self._work, cells]
        return Text(" | ".join(part for part in parts if part), style="dim", no_wrap=True, overflow="ellipsis")
