"""Reads the answer to a forced `tool_choice`: a JSON list of calls, which the grammar guarantees."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ToolCallDelta
from pdd_llamacpp_adapter.server.tools.call_json import may_be_call, read_calls
from pdd_llamacpp_adapter.server.tools.json_extent import JsonExtent, NotJson
from pdd_llamacpp_adapter.server.tools.tool_calls import new_call_id

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_llamacpp_adapter.server.output.deltas import Delta
    from pdd_llamacpp_adapter.server.tools.call_format import CallFormat, Tools

_HEAD = re.compile(r'\s*[\[,]\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_TAIL = re.compile(r"\s*\}")
_LIST_END = re.compile(r"\s*\]\s*")


class ForcedCallParser:
    """Gives out each call as soon as its name is known, and its arguments as they come.

    They will not have to be taken back: the answer cannot be anything but calls. One that is cut off at its
    maximal length or by a stop string ends within the arguments, as OpenAI's do; of one without arguments yet
    nothing is told.
    """

    def __init__(self, tools: Tools, form: CallFormat | None = None) -> None:
        self._tools = tools
        self._form = form
        self._text = ""
        self._deltas: list[Delta] = []
        self._state: Callable[[], bool] = self._before_arguments
        self._num_calls = 0
        self._closed = False
        """The last call has all its arguments."""
        self._extent = JsonExtent()

    @property
    def made_tool_calls(self) -> bool:
        """Whether there is a call, and none without its end: half of one cannot be run."""
        return self._num_calls > 0 and self._closed

    def push(self, text: str) -> list[Delta]:
        """Return what is known now that `text` follows."""
        self._text += text
        self._deltas = []
        while self._text and self._state():
            pass
        return self._deltas

    def finish(self) -> list[Delta]:
        """Return what was held back: as calls if it is some, as content if it cannot have become any."""
        rest, self._text = self._text, ""
        if not rest or (self._num_calls and (rest.isspace() or _LIST_END.fullmatch(rest))):
            return []
        calls = read_calls(rest, self._tools)
        if calls is None:
            return [] if self._begins_call(rest) else [ContentDelta(rest)]
        deltas: list[Delta] = []
        for call in calls:
            deltas.append(ToolCallDelta(self._num_calls, call.arguments, new_call_id(self._form), call.name))
            self._num_calls += 1
        self._closed = True
        return deltas

    def _begins_call(self, text: str) -> bool:
        """Whether `text` is the list of calls, or more of it, up to within a call that has nothing to show yet."""
        text = text.strip()
        listed = "[" + text[1:] if self._num_calls and text.startswith(",") else text
        try:
            return may_be_call(listed, "[") and JsonExtent().feed(listed) is None
        except NotJson:
            return False

    def _before_arguments(self) -> bool:
        head = _HEAD.match(self._text)
        if head is None or (name := json.loads(head[1])) not in self._tools:
            return False
        self._deltas.append(ToolCallDelta(self._num_calls, "", new_call_id(self._form), name))
        self._num_calls += 1
        self._closed = False
        self._text = self._text[head.end() :]
        self._extent = JsonExtent()
        self._state = self._in_arguments
        return True

    def _in_arguments(self) -> bool:
        try:
            end = self._extent.feed(self._text)
        except NotJson:
            self._state = self._in_words
            return True
        part = self._text[:end]
        self._deltas.append(ToolCallDelta(self._num_calls - 1, part))
        self._text = self._text[len(part) :]
        if end is not None:
            self._closed = True
            self._state = self._after_arguments
        return True

    def _after_arguments(self) -> bool:
        tail = _TAIL.match(self._text)
        if tail is not None:
            self._text = self._text[tail.end() :]
            self._state = self._before_arguments
            return True
        if not self._text.isspace():
            self._state = self._in_words
            return True
        return False

    def _in_words(self) -> bool:
        self._deltas.append(ContentDelta(self._text))
        self._text = ""
        return False
