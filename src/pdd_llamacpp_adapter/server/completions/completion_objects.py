"""OpenAI's ``text_completion``, whole and streamed.

https://platform.openai.com/docs/api-reference/completions/object
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.answers.objects import ChunkWriter, head, usage_of
from pdd_llamacpp_adapter.server.answers.prepared_answer import Event
from pdd_llamacpp_adapter.server.answers.token_logprobs import TextOffsets, TokenNames, completion_logprobs
from pdd_llamacpp_adapter.server.output.deltas import ContentDelta

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pdd_llamacpp_adapter.server.answers.answering import Call
    from pdd_llamacpp_adapter.server.answers.prepared_answer import AnswerStep, Finished
    from pdd_llamacpp_adapter.server.answers.transcript import Transcript
    from pdd_llamacpp_adapter.server.wire.json_body import Json


def text_completion(call: Call, transcript: Transcript, finished: Finished, *, echo: str) -> Json:
    """Return the whole answer, behind the prompt's text `echo`."""
    logprobs = None
    if transcript.keep_logprobs:
        vocab = call.runtime.vocab
        logprobs = completion_logprobs(transcript.tokens, TokenNames(vocab), TextOffsets(vocab))
    choice: Json = {
        "index": 0,
        "text": echo + transcript.content,
        "logprobs": logprobs,
        "finish_reason": finished.finish_reason,
        "stop_reason": finished.outcome.stop_reason,
    }
    return {
        **head(call, "text_completion"),
        "choices": [choice],
        "usage": usage_of(finished.outcome),
        "pdd": finished.outcome.summary(),
    }


class CompletionChunks(ChunkWriter):
    """Writes a streamed completion: text, finish reason, usage if wanted, ``[DONE]``."""

    def __init__(self, call: Call, *, echo: str, include_usage: bool, with_logprobs: bool) -> None:
        super().__init__(call, "text_completion", include_usage=include_usage, with_logprobs=with_logprobs)
        self._echo = echo
        self._begins = TextOffsets(call.runtime.vocab)

    def begin(self) -> Iterator[Event]:
        """Return the prompt, if it is to be echoed."""
        if self._echo:
            yield Event(self._chunk({"text": self._echo}))

    def step(self, step: AnswerStep) -> Iterator[Event]:
        """Return a chunk with the step's text, if it has any."""
        self._wait(step.token)
        text = "".join(delta.text for delta in step.deltas if isinstance(delta, ContentDelta))
        if text:
            yield Event(self._chunk({"text": text}, logprobs=self._logprobs()))

    def finish(self, finished: Finished) -> Iterator[Event]:
        """Return the chunk with the finish reason, that with the usage, and the end."""
        last = self._chunk({"text": ""}, logprobs=self._logprobs(), finished=finished)
        yield from self._end(last, finished.outcome)

    def _logprobs(self) -> Json | None:
        tokens, self._waiting = self._waiting, []
        if not tokens or self._names is None:
            return None
        return completion_logprobs(tokens, self._names, self._begins)
