"""Parts a model's thoughts from its answer: the text between ``<think>`` and ``</think>``."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ReasoningDelta
from pdd_llamacpp_adapter.server.output.text_machine import TextMachine, overlap

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


OPENS = "<think>"
CLOSES = "</think>"
_TAIL_TOKENS = 16
"""More than ``<think>`` and the line breaks after it ever are."""


class ReasoningStart(StrEnum):
    """Where an answer begins."""

    NEVER = "never"
    """There are no thoughts: a grammar leaves no room for them."""
    TAGGED = "tagged"
    """Thoughts, if any, begin with ``<think>``."""
    INSIDE = "inside"
    """The prompt has begun the thoughts already."""


def reasoning_start(prompt: Sequence[int], piece: Callable[[int], bytes]) -> ReasoningStart:
    """Return where the answer to the chat `prompt` begins; `piece` gives the bytes of a token."""
    tail = b"".join(piece(token) for token in prompt[-_TAIL_TOKENS:]).rstrip()
    return ReasoningStart.INSIDE if tail.endswith(OPENS.encode()) else ReasoningStart.TAGGED


class ReasoningSplitter(TextMachine):
    """Splits an answer into thoughts and words; the tags, and white space next to them, belong to neither.

    Only an answer that begins with ``<think>`` has thoughts: later on, it is a word like others.
    """

    def __init__(self, start: ReasoningStart) -> None:
        super().__init__(
            {
                ReasoningStart.NEVER: self._in_words,
                ReasoningStart.TAGGED: self._at_start,
                ReasoningStart.INSIDE: self._at_start_inside,
            }[start]
        )

    def _at_start(self, final: bool) -> bool:
        rest = self._text.lstrip()
        if OPENS.startswith(rest) and rest != OPENS and not final:
            return False
        if rest.startswith(OPENS):
            self._text = rest[len(OPENS) :]
            self._state = self._before_thoughts
        else:
            self._state = self._in_words
        return True

    def _at_start_inside(self, final: bool) -> bool:
        rest = self._text.lstrip()
        if OPENS.startswith(rest) and rest != OPENS and not final:
            return False
        self._text = rest.removeprefix(OPENS)  # some models repeat what their template has written
        self._state = self._before_thoughts
        return True

    def _before_thoughts(self, final: bool) -> bool:  # noqa: ARG002 - one signature for all states
        self._text = self._text.lstrip()
        if self._text:
            self._state = self._in_thoughts
        return bool(self._text)

    def _in_thoughts(self, final: bool) -> bool:
        thought, closed, rest = self._text.partition(CLOSES)
        if closed:
            self._think(thought.rstrip())
            self._text = rest
            self._state = self._before_words
            return True
        if not final:
            thought = self._text[: len(self._text) - overlap(self._text, CLOSES)].rstrip()
        self._think(thought)
        self._text = self._text[len(thought) :]
        return False

    def _think(self, thought: str) -> None:
        if thought:
            self._deltas.append(ReasoningDelta(thought))

    def _before_words(self, final: bool) -> bool:  # noqa: ARG002 - one signature for all states
        self._text = self._text.lstrip()
        if self._text:
            self._state = self._in_words
        return bool(self._text)

    def _in_words(self, final: bool) -> bool:  # noqa: ARG002 - one signature for all states
        self._deltas.append(ContentDelta(self._text))
        self._text = ""
        return False
