"""OpenAI's ``chat.completion`` and ``chat.completion.chunk``.

https://platform.openai.com/docs/api-reference/chat/object and .../chat/streaming
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.answers.objects import ChunkWriter, head, usage_of
from pdd_llamacpp_adapter.server.answers.prepared_answer import Event
from pdd_llamacpp_adapter.server.answers.token_logprobs import TokenNames, chat_logprobs
from pdd_llamacpp_adapter.server.output.deltas import ContentDelta, ReasoningDelta
from pdd_llamacpp_adapter.server.wire.sampling_fields import Details

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.server.answers.answering import Call, RunningAnswer
    from pdd_llamacpp_adapter.server.answers.prepared_answer import AnswerStep, Finished
    from pdd_llamacpp_adapter.server.answers.transcript import Transcript
    from pdd_llamacpp_adapter.server.output.deltas import Delta
    from pdd_llamacpp_adapter.server.wire.json_body import Json


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatShape:
    """What a chat completion looks like, as its request asked."""

    details: Details = field(default_factory=Details)
    echo: str = ""
    """What is written before the answer."""
    prompt: Sequence[int] = ()
    """The prompt's token ids."""
    legacy_call: bool = False
    """A call is a `function_call`, as before there were tools."""

    def finish_reason(self, finished: Finished | None) -> str | None:
        """Return the finish reason, None for an answer that is not finished."""
        reason = None if finished is None else finished.finish_reason
        return "function_call" if reason == "tool_calls" and self.legacy_call else reason


def chat_completion(call: Call, shape: ChatShape, transcript: Transcript, finished: Finished) -> Json:
    """Return the whole answer."""
    return {
        **_body(call, shape, transcript, finished),
        "usage": usage_of(finished.outcome),
        "pdd": finished.outcome.summary(),
    }


def retrieved_completion(shape: ChatShape, answer: RunningAnswer) -> Json:
    """Return the answer as far as it is made.

    `finish_reason` is null while it is made or when it failed; ``pdd.status`` tells ``running``, ``finished``,
    ``cancelled`` (its client left) or ``failed``, and then ``pdd.error`` why.
    """
    outcome = answer.outcome
    pdd: Json = {"status": answer.status}
    if answer.error is not None:
        pdd.update(answer.error.body())
    if outcome is not None:
        pdd.update(outcome.summary())
    body = _body(answer.call, shape, answer.transcript, answer.finished)
    return {**body, "usage": None if outcome is None else usage_of(outcome), "pdd": pdd}


def _body(call: Call, shape: ChatShape, transcript: Transcript, finished: Finished | None) -> Json:
    content = shape.echo + transcript.content
    message: Json = {"role": "assistant", "content": content, "refusal": None}
    if transcript.reasoning:
        message["reasoning_content"] = transcript.reasoning
    functions = [{"name": made.name, "arguments": made.arguments} for made in transcript.tool_calls]
    if functions:
        message["content"] = content or None
    if functions and shape.legacy_call:
        message["function_call"] = functions[0]
    elif functions:
        message["tool_calls"] = [
            {"id": made.call_id, "type": "function", "function": function}
            for made, function in zip(transcript.tool_calls, functions, strict=True)
        ]
    logprobs = None
    if transcript.keep_logprobs:
        names = TokenNames(call.runtime.vocab, shape.details)
        logprobs = {"content": chat_logprobs(transcript.tokens, names), "refusal": None}
    choice: Json = {
        "index": 0,
        "message": message,
        "logprobs": logprobs,
        "finish_reason": shape.finish_reason(finished),
        "stop_reason": None if finished is None else finished.outcome.stop_reason,
    }
    prompt: Json = {}
    if shape.details.return_token_ids:
        choice["token_ids"] = [token.token_id for token in transcript.tokens]
        prompt = {"prompt_token_ids": list(shape.prompt)}
    return {**head(call, "chat.completion"), "choices": [choice], **prompt}


class ChatChunks(ChunkWriter):
    """Writes a streamed chat completion: role, content, finish reason, usage if wanted, ``[DONE]``.

    With `only_calls`, the answer has no content: clients tell by it that a text has begun.
    """

    def __init__(self, call: Call, shape: ChatShape, *, only_calls: bool = False) -> None:
        super().__init__(call, "chat.completion.chunk", shape.prompt, shape.details)
        self._shape = shape
        self._no_text: Json = {"content": None if only_calls else ""}

    def begin(self) -> Iterator[Event]:
        """Return the role chunk, and what is echoed."""
        first = self._chunk({"delta": {"role": "assistant", **self._no_text}})
        yield Event({**first, "prompt_token_ids": list(self._prompt)} if self._details.return_token_ids else first)
        if self._shape.echo:
            yield Event(self._chunk({"delta": {"content": self._shape.echo}}))

    def step(self, step: AnswerStep) -> Iterator[Event]:
        """Return a chunk per delta; the first has the logprobs."""
        self._wait(step)
        for delta in step.deltas:
            yield Event(self._chunk({"delta": _delta(delta, self._shape)}, tokens=self._taken()))

    def finish(self, finished: Finished) -> Iterator[Event]:
        """Return the chunk with the finish reason, that with the usage, and the end."""
        if self._waiting:
            yield Event(self._chunk({"delta": self._no_text}, tokens=self._taken()))
        last = self._chunk({"delta": {}}, finished=finished)
        last["choices"][0]["finish_reason"] = self._shape.finish_reason(finished)
        yield from self._end(last, finished.outcome)

    def _logprobs(self, tokens: Sequence[ShownToken], names: TokenNames) -> Json:
        return {"content": chat_logprobs(tokens, names), "refusal": None}


def _delta(delta: Delta, shape: ChatShape) -> Json:
    match delta:
        case ContentDelta(text):
            return {"content": text}
        case ReasoningDelta(text):
            return {"reasoning_content": text}
    begins = delta.call_id is not None or delta.name is not None
    function: Json = (
        {"name": delta.name, "arguments": delta.arguments} if begins else {"arguments": delta.arguments}
    )
    if shape.legacy_call:
        return {"function_call": function}
    if not begins:
        return {"tool_calls": [{"index": delta.index, "function": function}]}
    return {"tool_calls": [{"index": delta.index, "id": delta.call_id, "type": "function", "function": function}]}
