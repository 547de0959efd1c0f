"""Writes a response, streamed or whole, as its answer is made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.answers.prepared_answer import Event
from pdd_llamacpp_adapter.server.answers.token_logprobs import TokenNames, chat_logprobs
from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ReasoningDelta, ToolCallDelta
from pdd_llamacpp_adapter.server.responses.items import CallItem, TextItem, TextKind
from pdd_llamacpp_adapter.server.responses.response import ResponseShape

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.server.answers.answering import Call
    from pdd_llamacpp_adapter.server.answers.prepared_answer import AnswerStep, Finished
    from pdd_llamacpp_adapter.server.answers.transcript import Transcript
    from pdd_llamacpp_adapter.server.output.deltas import Delta
    from pdd_llamacpp_adapter.server.responses.items import OpenItem, Told
    from pdd_llamacpp_adapter.server.wire.failures import ErrorObject
    from pdd_llamacpp_adapter.server.wire.json_body import Json


class ResponseEvents:
    """The `EventWriter` of responses. Each stretch of thoughts or words and each call is an item of the output.

    Args:
        call: the request it answers.
        echoed: the fields of the response that repeat the request.
        with_logprobs: whether text comes with logprobs.
    """

    def __init__(self, call: Call, echoed: Json, *, with_logprobs: bool) -> None:
        self._shape = ResponseShape(call, echoed)
        self._names = TokenNames(call.runtime.vocab) if with_logprobs else None
        self._tokens = WordTokens()
        self._output: list[Json] = []
        self._open: OpenItem | None = None
        self._thought = False
        self._sequence_number = 0
        self.response: Json = {}
        """The response, once it is finished."""

    def begin(self) -> Iterator[Event]:
        """Return the events before the first item."""
        yield self._event("response.created", {"response": self._shape.begun()})
        yield self._event("response.in_progress", {"response": self._shape.begun()})

    def step(self, step: AnswerStep) -> Iterator[Event]:
        """Return what `step` adds."""
        if self._names is not None and step.token is not None and self._names.is_text(step.token.token_id):
            self._tokens.add(step.token)
        for delta in step.deltas:
            yield from self._add(delta)

    def finish(self, finished: Finished) -> Iterator[Event]:
        """Return the end of the last item, and of the response."""
        if self._open is None:
            yield from self._begin(TextItem(TextKind.MESSAGE))
        half_a_call = isinstance(self._open, CallItem) and finished.finish_reason != "tool_calls"
        cut = finished.finish_reason == "length" or half_a_call
        yield from self._end("incomplete" if cut else "completed")
        self.response = self._shape.finished(finished, self._output, thought=self._thought)
        yield self._event(f"response.{self.response['status']}", {"response": self.response})

    def fail(self, error: ErrorObject) -> Iterator[Event]:
        """Return the failed response, with the items as far as they came."""
        output = self._output if self._open is None else [*self._output, self._open.item("incomplete")]
        yield self._event("response.failed", {"response": self._shape.failed(error, output)})

    def _add(self, delta: Delta) -> Iterator[Event]:
        match delta:
            case ContentDelta(text):
                yield from self._add_text(TextKind.MESSAGE, text)
            case ReasoningDelta(text):
                self._thought = True
                yield from self._add_text(TextKind.REASONING, text)
            case ToolCallDelta():
                yield from self._add_call(delta)

    def _add_text(self, kind: TextKind, text: str) -> Iterator[Event]:
        item = self._open
        if not isinstance(item, TextItem) or item.kind is not kind:
            item = TextItem(kind)
            yield from self._begin(item)
        logprobs = self._logprobs(text) if kind is TextKind.MESSAGE else []
        yield self._told(item.delta(text, logprobs))

    def _add_call(self, delta: ToolCallDelta) -> Iterator[Event]:
        item = self._open
        if not isinstance(item, CallItem) or item.index != delta.index:
            item = CallItem(delta.index, delta.call_id or "", delta.name or "")
            yield from self._begin(item)
        if delta.arguments:
            yield self._told(item.delta(delta.arguments))

    def _begin(self, item: OpenItem) -> Iterator[Event]:
        if self._open is not None:
            yield from self._end("completed")
        self._open = item
        for told in item.opened():
            yield self._told(told)

    def _end(self, status: str) -> Iterator[Event]:
        if self._open is None:
            return
        for told in self._open.closed(status):
            yield self._told(told)
        self._output.append(self._open.item(status))
        self._open = None

    def _logprobs(self, words: str) -> list[Json]:
        return [] if self._names is None else chat_logprobs(self._tokens.of(words), self._names)

    def _told(self, told: Told) -> Event:
        kind, fields = told
        return self._event(kind, {"output_index": len(self._output), **fields})

    def _event(self, kind: str, fields: Json) -> Event:
        data = {"type": kind, "sequence_number": self._sequence_number, **fields}
        self._sequence_number += 1
        return Event(data, name=kind)


def whole_response(writer: ResponseEvents, transcript: Transcript, finished: Finished) -> Json:
    """Return the response that `writer` makes of a whole answer: what it would have streamed."""
    for step in transcript.steps:
        list(writer.step(step))
    list(writer.finish(finished))
    return writer.response


class WordTokens:
    """Tells which of an answer's tokens are its words: not those of thoughts, calls, their markers and the end.

    Takes the tokens as they are shown, and gives them out with the words that are made of them.

    The parsers hold text back, and drop some: words are therefore looked for in the text of the tokens that wait.
    A token that brings no text, as in the middle of a character, belongs to the one that brings its own.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[ShownToken | None, str]] = []
        """Tokens with their text; None where words before have had the token and left the rest of its text."""

    def add(self, token: ShownToken) -> None:
        """Take the next token. One that is no text at all, such as the answer's end, must not be among them."""
        self._waiting.append((token, token.text))

    def of(self, words: str) -> list[ShownToken]:
        """Return the tokens of `words`, the next there are."""
        text = "".join(own for _, own in self._waiting)
        # words go on where the last ones ended; behind something else they are the newest that is not held back
        start = 0 if text.startswith(words) else text.rfind(words)
        if start < 0:  # withheld to the answer's end, and no token brought them
            start, words = 0, text + words
        waiting, self._waiting = self._waiting, []
        end, at = start + len(words), 0
        found: list[ShownToken] = []
        for token, own in waiting:
            begin, at = at, at + len(own)
            among = begin < end and max(at, begin + 1) > start
            if among and token is not None:
                found.append(token)
            if begin >= end or at > end:
                self._waiting.append((None if among else token, own[max(0, end - begin) :]))
        return found
