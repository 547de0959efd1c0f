"""Reads one answer's text: thoughts first, tool calls in what is left."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ReasoningDelta
from pdd_llamacpp_adapter.server.output.reasoning import ReasoningSplitter, ReasoningStart
from pdd_llamacpp_adapter.server.tools.forced_calls import ForcedCallParser
from pdd_llamacpp_adapter.server.tools.tool_calls import ToolCallParser

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.request import Grammar
    from pdd_llamacpp_adapter.server.output.deltas import Delta
    from pdd_llamacpp_adapter.server.tools.tool_use import ToolPlan


class AnswerParser:
    """The `OutputParser` of chats: a splitter of thoughts, and a parser of calls behind it."""

    def __init__(
        self, splitter: ReasoningSplitter, calls: ToolCallParser | ForcedCallParser | None, *, shown: bool = True
    ) -> None:
        self._splitter = splitter
        self._shown = shown
        self._calls = calls

    @property
    def made_tool_calls(self) -> bool:
        """Whether there are tool calls, all of them with their ends."""
        return self._calls is not None and self._calls.made_tool_calls

    def push(self, text: str) -> list[Delta]:
        """Return what is known now that `text` follows."""
        return self._read(self._splitter.push(text))

    def finish(self) -> list[Delta]:
        """Return what was held back. Called once, after the last `push`."""
        rest = self._read(self._splitter.finish())
        return rest if self._calls is None else [*rest, *self._calls.finish()]

    def _read(self, split: list[Delta]) -> list[Delta]:
        if not self._shown:
            split = [delta for delta in split if not isinstance(delta, ReasoningDelta)]
        if self._calls is None:
            return split
        deltas: list[Delta] = []
        for delta in split:
            deltas += self._calls.push(delta.text) if isinstance(delta, ContentDelta) else [delta]
        return deltas


def output_parser(
    *,
    reasoning: ReasoningStart,
    tools: ToolPlan | None = None,
    words: Grammar | None = None,
    shown: bool = True,
) -> AnswerParser:
    """Return the parser of one answer.

    Args:
        reasoning: where the answer begins, from `reasoning_start`; NEVER for an answer that a grammar constrains.
        shown: whether thoughts are returned.
        tools: the plan of the request's tools; a forced choice leaves no room for anything but calls.
        words: what the answer's words have to look like.
    """
    calls: ToolCallParser | ForcedCallParser | None = None
    if tools is not None and tools.grammar is not None:
        calls, reasoning = ForcedCallParser(tools.schemas, tools.native), ReasoningStart.NEVER
    elif tools is not None and (form := tools.format_beside(words)) is not None:
        calls = ToolCallParser(form, tools.schemas, parallel=tools.parallel)
    return AnswerParser(ReasoningSplitter(reasoning), calls, shown=shown)
