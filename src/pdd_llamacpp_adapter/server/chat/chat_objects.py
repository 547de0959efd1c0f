"""OpenAI's ``chat.completion`` and ``chat.completion.chunk``.

https://platform.openai.com/docs/api-reference/chat/object and .../chat/streaming
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.answers.objects import ChunkWriter, head, usage_of
from pdd_llamacpp_adapter.server.answers.prepared_answer import Event
from pdd_llamacpp_adapter.server.answers.token_logprobs import TokenNames, chat_logprobs
from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ReasoningDelta

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pdd_llamacpp_adapter.server.answers.answering import Call, RunningAnswer
    from pdd_llamacpp_adapter.server.answers.prepared_answer import AnswerStep, Finished
    from pdd_llamacpp_adapter.server.answers.transcript import Transcript
    from pdd_llamacpp_adapter.server.output.deltas import Delta
    from pdd_llamacpp_adapter.server.wire.json_body import Json


def chat_completion(call: Call, transcript: Transcript, finished: Finished) -> Json:
    """Return the whole answer."""
    return {
        **_body(call, transcript, finished.finish_reason, finished.outcome.stop_reason),
        "usage": usage_of(finished.outcome),
        "pdd": finished.outcome.summary(),
    }


def retrieved_completion(answer: RunningAnswer) -> Json:
    """Return the answer as far as it is made.

    `finish_reason` is null while it is made or when it failed; ``pdd.status`` tells ``running``, ``finished``,
    ``cancelled`` (its client left) or ``failed``, and then ``pdd.error`` why.
    """
    finished, outcome = answer.finished, answer.outcome
    reason = None if finished is None else finished.finish_reason
    pdd: Json = {"status": answer.status}
    if answer.error is not None:
        pdd.update(answer.error.body())
    if outcome is not None:
        pdd.update(outcome.summary())
    body = _body(
        answer.call, answer.transcript, reason, None if finished is None else finished.outcome.stop_reason
    )
    return {**body, "usage": None if outcome is None else usage_of(outcome), "pdd": pdd}


def _body(call: Call, transcript: Transcript, reason: str | None, stop_reason: str | int | None) -> Json:
    message: Json = {"role": "assistant", "content": transcript.content, "refusal": None}
    if transcript.reasoning:
        message["reasoning_content"] = transcript.reasoning
    if transcript.tool_calls:
        message["content"] = transcript.content or None
        message["tool_calls"] = [
            {"id": made.call_id, "type": "function", "function": {"name": made.name, "arguments": made.arguments}}
            for made in transcript.tool_calls
        ]
    logprobs = None
    if transcript.keep_logprobs:
        content = chat_logprobs(transcript.tokens, TokenNames(call.runtime.vocab))
        logprobs = {"content": content, "refusal": None}
    choice: Json = {
        "index": 0,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": reason,
        "stop_reason": stop_reason,
    }
    return {**head(call, "chat.completion"), "choices": [choice]}


class ChatChunks(ChunkWriter):
    """Writes a streamed chat completion: role, content, finish reason, usage if wanted, ``[DONE]``.

    With `only_calls`, the answer has no content: clients tell by it that a text has begun.
    """

    def __init__(self, call: Call, *, include_usage: bool, with_logprobs: bool, only_calls: bool = False) -> None:
        super().__init__(call, "chat.completion.chunk", include_usage=include_usage, with_logprobs=with_logprobs)
        self._no_text: Json = {"content": None if only_calls else ""}

    def begin(self) -> Iterator[Event]:
        """Return the role chunk."""
        yield Event(self._chunk({"delta": {"role": "assistant", **self._no_text}}))

    def step(self, step: AnswerStep) -> Iterator[Event]:
        """Return a chunk per delta; the first has the logprobs."""
        self._wait(step.token)
        for delta in step.deltas:
            yield Event(self._chunk({"delta": _delta(delta)}, logprobs=self._logprobs()))

    def finish(self, finished: Finished) -> Iterator[Event]:
        """Return the chunk with the finish reason, that with the usage, and the end."""
        if self._waiting:
            yield Event(self._chunk({"delta": self._no_text}, logprobs=self._logprobs()))
        yield from self._end(self._chunk({"delta": {}}, finished=finished), finished.outcome)

    def _logprobs(self) -> Json | None:
        tokens, self._waiting = self._waiting, []
        if not tokens or self._names is None:
            return None
        return {"content": chat_logprobs(tokens, self._names), "refusal": None}


def _delta(delta: Delta) -> Json:
    match delta:
        case ContentDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text}
    function: Json = {"arguments": delta.arguments}
    if delta.call_id is None and delta.name is None:
        return {"tool_calls": [{"index": delta.index, "function": function}]}
    function = {"name": delta.name, **function}
    return {"tool_calls": [{"index": delta.index, "id": delta.call_id, "type": "function", "function": function}]}
