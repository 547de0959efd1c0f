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
    from collections.abc import Iterator, Sequence

    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.server.answers.answering import Call
    from pdd_llamacpp_adapter.server.answers.prepared_answer import AnswerStep, Finished
    from pdd_llamacpp_adapter.server.answers.transcript import Transcript
    from pdd_llamacpp_adapter.server.wire.json_body import Json
    from pdd_llamacpp_adapter.server.wire.sampling_fields import Details


def text_completion(
    call: Call, details: Details, prompt: Sequence[int], transcript: Transcript, finished: Finished, *, echo: str
) -> Json:
    """Return the whole answer to `prompt`, behind its text `echo`."""
    logprobs = None
    if transcript.keep_logprobs:
        vocab = call.runtime.vocab
        logprobs = completion_logprobs(transcript.tokens, TokenNames(vocab, details), TextOffsets(vocab))
    choice: Json = {
        "index": 0,
        "text": echo + transcript.content,
        "logprobs": logprobs,
        "finish_reason": finished.finish_reason,
        "stop_reason": finished.outcome.stop_reason,
    }
    if details.return_token_ids:
        ids = [token.token_id for token in transcript.tokens]
        choice |= {"token_ids": ids, "prompt_token_ids": list(prompt)}
    return {
        **head(call, "text_completion"),
        "choices": [choice],
        "usage": usage_of(finished.outcome),
        "pdd": finished.outcome.summary(),
    }


class CompletionChunks(ChunkWriter):
    """Writes a streamed completion: text, finish reason, usage if wanted, ``[DONE]``."""

    def __init__(self, call: Call, details: Details, prompt: Sequence[int], *, echo: str) -> None:
        super().__init__(call, "text_completion", prompt, details)
        self._echo = echo
        self._begins = TextOffsets(call.runtime.vocab)

    def begin(self) -> Iterator[Event]:
        """Return the prompt, if it is to be echoed, or its ids."""
        ids: Json = {"prompt_token_ids": list(self._prompt)} if self._details.return_token_ids else {}
        if self._echo or ids:
            yield Event(self._chunk({"text": self._echo, **ids}))

    def step(self, step: AnswerStep) -> Iterator[Event]:
        """Return a chunk with the step's text, if it has any."""
        self._wait(step)
        text = "".join(delta.text for delta in step.deltas if isinstance(delta, ContentDelta))
        if text:
            yield Event(self._chunk({"text": text}, tokens=self._taken()))

    def finish(self, finished: Finished) -> Iterator[Event]:
        """Return the chunk with the finish reason, that with the usage, and the end."""
        last = self._chunk({"text": ""}, tokens=self._taken(), finished=finished)
        yield from self._end(last, finished.outcome)

    def _logprobs(self, tokens: Sequence[ShownToken], names: TokenNames) -> Json:
        return completion_logprobs(tokens, names, self._begins)
