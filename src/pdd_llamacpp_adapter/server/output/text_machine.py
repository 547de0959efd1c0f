"""A parser of text that arrives in pieces: what two of them have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_llamacpp_adapter.server.output.deltas import Delta


def overlap(text: str, marker: str) -> int:
    """Return how many characters at the end of `text` could be the beginning of `marker`."""
    longest = min(len(text), len(marker) - 1)
    return next((size for size in range(longest, 0, -1) if text.endswith(marker[:size])), 0)


class TextMachine:
    """A state machine over the text that is not understood yet.

    A state is a method that takes text off the front of `_text`, adds to `_deltas`, and may set the next `_state`;
    it returns False when it needs more text. With `final` there will be none.
    """

    def __init__(self, start: Callable[[bool], bool]) -> None:
        self._text = ""
        self._deltas: list[Delta] = []
        self._state = start

    def push(self, text: str) -> list[Delta]:
        """Return what is known now that `text` follows."""
        return self._run(text, final=False)

    def finish(self) -> list[Delta]:
        """Return what was held back."""
        return self._run("", final=True)

    def _run(self, text: str, *, final: bool) -> list[Delta]:
        self._text += text
        self._deltas = []
        while self._text and self._state(final):
            pass
        return self._deltas
