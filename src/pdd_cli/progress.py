"""What the user sees while a step takes its time: a spinner on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console

LINE_EVERY = 10.0
"""Seconds between two lines about one step, where lines cannot be overwritten."""


class Step(Protocol):
    """The step under way."""

    def say(self, detail: str) -> None:
        """Tell what the step is doing now."""


class Progress(Protocol):
    """Shows that a step runs: ``with progress("Reading the file") as step``."""

    def __call__(self, what: str, /) -> AbstractContextManager[Step]:
        """Show `what` until the block ends."""


class _Silent:
    def say(self, detail: str) -> None:
        """Show nothing."""


def silent(what: str, /) -> AbstractContextManager[Step]:  # noqa: ARG001
    """Show nothing: for programs that prepare a model without a console."""
    return nullcontext(_Silent())


class ConsoleProgress:
    """Shows steps on a rich console."""

    def __init__(self, console: Console, *, line_every: float = LINE_EVERY) -> None:
        self._console = console
        self._line_every = line_every

    @contextmanager
    def __call__(self, what: str, /) -> Iterator[Step]:
        """Show `what`, the seconds it has taken, and what it is doing, until the block ends."""
        step = _ConsoleStep(self._console, what, self._line_every)
        with step.running():
            yield step


class _ConsoleStep:
    def __init__(self, console: Console, what: str, line_every: float) -> None:
        self._console = console
        self._what = what
        self._line_every = line_every
        self._detail = ""
        self._start = time.monotonic()
        self._done = threading.Event()

    def say(self, detail: str) -> None:
        """Tell what the step is doing now."""
        self._detail = detail

    @contextmanager
    def running(self) -> Iterator[None]:
        """Show the step until the block ends; a step that fails is not said to be done."""
        ticker = threading.Thread(target=self._on_terminal if self._console.is_terminal else self._in_lines)
        ticker.start()
        try:
            yield
        finally:
            self._done.set()
            ticker.join()
        if self._elapsed >= 1:
            self._console.print(f"{self._what}: {self._elapsed:.0f} s", highlight=False, markup=False)

    @property
    def _elapsed(self) -> float:
        return time.monotonic() - self._start

    def _on_terminal(self) -> None:
        from rich.text import Text

        with self._console.status("") as status:
            while not self._done.wait(0.1):
                line = Text(f"{self._what} {self._elapsed:.0f} s ", overflow="ellipsis", no_wrap=True)
                status.update(line.append(self._detail, style="dim"))

    def _in_lines(self) -> None:
        self._console.print(f"{self._what} ...", highlight=False, markup=False)
        while not self._done.wait(self._line_every):
            line = f"{self._what} ... {self._elapsed:.0f} s {self._detail}"
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)
