"""Finds the tool calls in an answer whose text arrives in pieces."""

from __future__ import annotations

import secrets
import string
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ToolCallDelta
from pdd_llamacpp_adapter.server.output.text_machine import TextMachine, overlap
from pdd_llamacpp_adapter.server.tools.call_body import Body, NoCall

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pdd_llamacpp_adapter.server.tools.call_format import CallFormat, ToolCall, Tools

_ALPHANUMERIC = string.ascii_letters + string.digits


def new_call_id(form: CallFormat | None = None) -> str:
    """Return a fresh id like OpenAI's; for Mistral's templates, nine letters and digits, as they demand."""
    if form is not None and form.short_ids:
        return "".join(secrets.choice(_ALPHANUMERIC) for _ in range(9))
    return "call_" + secrets.token_hex(12)


class ToolCallParser(TextMachine):
    """Splits an answer into words and tool calls.

    Words pass at once, but for what could be the beginning of a call's marker, and white space at the beginning
    and between calls, which is dropped if only calls surround it. A call is given out when it is whole and known
    to be one: what was shown cannot be taken back. What looks like a call and is none stays content, unchanged.
    Without `parallel` the first call is the only one: others are dropped, also one that is cut off.
    """

    def __init__(self, form: CallFormat, tools: Tools, *, parallel: bool = True) -> None:
        """Begin an answer.

        Args:
            form: the format that the model was told or taught; those in `CallFormat.also` are read, too.
            tools: what may be called.
            parallel: whether there may be several calls.
        """
        super().__init__(self._at_start)
        self._form = form
        self._forms = (form, *form.also)
        self._heads = tuple({head: None for one in self._forms for head in (*one.markers, *one.openings)})
        self._tools = tools
        self._parallel = parallel
        self._num_calls = 0
        self._value_at = 0
        """Where the call begins in `_text`, behind marker and white space."""
        self._no_call_at = 0
        """Where words go on in `_text`, should it be no call."""
        self._trials: list[tuple[CallFormat, Body]] = []
        """The formats that the call may have, as far as it is known."""
        self._closes: tuple[str, ...] = ()

    @property
    def made_tool_calls(self) -> bool:
        """Whether there has been a call."""
        return self._num_calls > 0

    @property
    def _has_all(self) -> bool:
        return self._num_calls > 0 and not self._parallel

    def _at_start(self, final: bool) -> bool:
        """Nothing but white space since the beginning, or since the last call."""
        lead = string.whitespace + (self._form.between if self._num_calls else "")
        rest = self._text.lstrip(lead)
        if not rest:
            if final:
                self._say(self._text if self._text.strip() or not self._num_calls else "", len(self._text))
            return False
        space = len(self._text) - len(rest)
        if head := next((head for head in self._heads if rest.startswith(head)), None):
            return self._open_at(space, head)
        if not final and any(head.startswith(rest) for head in self._heads):
            return False
        if bare := [form for form in self._forms if form.bare]:
            return self._open(bare, space, space)
        self._state = self._in_words
        return True

    def _in_words(self, final: bool) -> bool:
        found = [(at, head) for head in self._heads if (at := self._text.find(head)) >= 0]
        if found:
            begins, head = min(found)
            self._say(self._text[:begins], begins)
            return self._open_at(0, head)
        held = 0 if final else max((overlap(self._text, head) for head in self._heads), default=0)
        free = len(self._text) - held
        self._say(self._text[:free], free)
        return False

    def _open_at(self, at: int, head: str) -> bool:
        behind = at + len(head)
        if marked := [form for form in self._forms if head in form.markers]:
            return self._open(marked, behind, behind)
        return self._open([form for form in self._forms if head in form.openings], at, behind)

    def _open(self, forms: Iterable[CallFormat], value_at: int, no_call_at: int) -> bool:
        self._value_at, self._no_call_at = value_at, no_call_at
        self._trials = [(form, Body(form.body(self._tools), value_at)) for form in forms]
        self._state = self._in_call
        return True

    def _in_call(self, final: bool) -> bool:
        ended: list[tuple[int, CallFormat]] = []
        for trial in list(self._trials):
            try:
                end = trial[1].end(self._text)
            except NoCall:
                self._trials.remove(trial)
                continue
            if end is not None:
                ended.append((end, trial[0]))
        # of several, the one that ends first: it would have, too, had the text come in pieces
        for end, form in sorted(ended, key=lambda one: one[0]):
            if calls := form.read(self._text[self._value_at : end], self._tools):
                self._close(calls, form, end)
                return True
            self._no_call_at = end
            self._trials = [trial for trial in self._trials if trial[0] is not form]
        if self._trials:
            if final:
                self._say("" if self._has_all else self._text, len(self._text))
            return False
        self._say(self._text[: self._no_call_at], self._no_call_at)
        self._state = self._in_words
        return True

    def _close(self, calls: list[ToolCall], form: CallFormat, end: int) -> None:
        self._text = self._text[end:]
        for call in calls:
            if not self._has_all:
                self._give(call)
        self._closes = form.closes
        self._state = self._after_call if form.closes else self._at_start

    def _after_call(self, final: bool) -> bool:
        rest = self._text.lstrip()
        if closed := next((closes for closes in self._closes if rest.startswith(closes)), None):
            self._text = rest[len(closed) :]
            return True
        if not final and any(closes.startswith(rest) for closes in self._closes):
            return False
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
