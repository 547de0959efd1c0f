"""Finds the tool calls in an answer whose text arrives in pieces."""

from __future__ import annotations

import secrets
import string
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ToolCallDelta
from pdd_llamacpp_adapter.server.output.text_machine import TextMachine, overlap
from pdd_llamacpp_adapter.server.tools.json_extent import JsonExtent, NotJson
from pdd_llamacpp_adapter.server.tools.tool_formats import SYNTAXES, CallFormat, may_be_call, read_calls

if TYPE_CHECKING:
    from collections.abc import Collection

    from pdd_llamacpp_adapter.server.tools.tool_formats import ToolCall

_ALPHANUMERIC = string.ascii_letters + string.digits
_TELLS = 256
"""Characters of a call's beginning that show whether it may be one: a long one is not read again and again."""


def new_call_id(form: CallFormat | None = None) -> str:
    """Return a fresh id like OpenAI's; for Mistral's templates, nine letters and digits, as they demand."""
    if form is CallFormat.MISTRAL:
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
    return "call_" + secrets.token_hex(12)


class ToolCallParser(TextMachine):
    """Splits an answer into words and tool calls.

    Words pass at once, but for what could be the beginning of a call's marker, and white space at the beginning
    and between calls, which is dropped if only calls surround it. A call is given out when it is whole and known
    to be one: what was shown cannot be taken back. What looks like a call and is none stays content, unchanged.
    Without `parallel` the first call is the only one: others are dropped, also one that is cut off.
    """

    def __init__(self, form: CallFormat, names: Collection[str], *, parallel: bool = True) -> None:
        super().__init__(self._at_start)
        self._form = form
        self._syntax = SYNTAXES[form]
        self._names = names
        self._parallel = parallel
        self._num_calls = 0
        self._value_at = 0
        """Where the call's JSON begins in `_text`, behind marker and white space."""
        self._scanned = 0
        self._extent = JsonExtent()

    @property
    def made_tool_calls(self) -> bool:
        """Whether there has been a call."""
        return self._num_calls > 0

    @property
    def _has_all(self) -> bool:
        return self._num_calls > 0 and not self._parallel

    def _at_start(self, final: bool) -> bool:
        """Nothing but white space since the beginning, or since the last call."""
        lead = string.whitespace + (self._syntax.between if self._num_calls else "")
        rest = self._text.lstrip(lead)
        if not rest:
            if final:
                self._say(self._text if self._text.strip() or not self._num_calls else "", len(self._text))
            return False
        space = len(self._text) - len(rest)
        if rest.startswith(self._syntax.marker):
            return self._open(space + len(self._syntax.marker))
        if self._syntax.marker.startswith(rest) and not final:
            return False
        if rest.startswith(self._syntax.opens):
            return self._open(space)
        self._state = self._in_words
        return True

    def _in_words(self, final: bool) -> bool:
        begins = self._text.find(self._syntax.marker)
        if begins >= 0:
            self._say(self._text[:begins], begins)
            return self._open(len(self._syntax.marker))
        free = len(self._text) - (0 if final else overlap(self._text, self._syntax.marker))
        self._say(self._text[:free], free)
        return False

    def _open(self, value_at: int) -> bool:
        self._value_at = self._scanned = value_at
        self._extent = JsonExtent()
        self._state = self._in_call
        return True

    def _in_call(self, final: bool) -> bool:
        begins = self._text[self._value_at : self._value_at + _TELLS]
        if not may_be_call(begins.lstrip(), self._syntax.opens):
            return self._no_call()
        try:
            end = self._extent.feed(self._text[self._scanned :])
        except NotJson:
            return self._no_call()
        if end is None:
            self._scanned = len(self._text)
            if final:
                self._say("" if self._has_all else self._text, len(self._text))
            return False
        self._close(self._scanned + end)
        return True

    def _no_call(self) -> bool:
        self._say(self._text[: self._value_at], self._value_at)
        self._state = self._in_words
        return True

    def _close(self, end: int) -> None:
        calls = read_calls(self._text[self._value_at : end], self._names)
        if calls is None:
            self._say(self._text[:end], end)
            self._state = self._in_words
            return
        self._text = self._text[end:]
        for call in calls:
            if not self._has_all:
                self._give(call)
        self._state = self._after_call if self._syntax.closes else self._at_start

    def _after_call(self, final: bool) -> bool:
        rest = self._text.lstrip()
        if not final and self._syntax.closes.startswith(rest) and rest != self._syntax.closes:
            return False
        if rest.startswith(self._syntax.closes):
            self._text = rest[len(self._syntax.closes) :]
        self._state = self._at_start
        return True

    def _give(self, call: ToolCall) -> None:
        call_id = new_call_id(self._form)
        self._deltas.append(ToolCallDelta(self._num_calls, call.arguments, call_id, call.name))
        self._num_calls += 1

    def _say(self, words: str, used: int) -> None:
        self._text = self._text[used:]
        if not words:
            return
        if self._deltas and isinstance(self._deltas[-1], ContentDelta):
            words = self._deltas.pop().text + words  # type: ignore[union-attr]
        self._deltas.append(ContentDelta(words))
