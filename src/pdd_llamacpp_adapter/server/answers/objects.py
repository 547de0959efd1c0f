"""What OpenAI's objects for chat completions and for legacy completions have in common, whole and in chunks."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.answers.prepared_answer import Event
from pdd_llamacpp_adapter.server.answers.token_logprobs import TokenNames

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.server.answers.answering import Call
    from pdd_llamacpp_adapter.server.answers.prepared_answer import AnswerStep, Finished
    from pdd_llamacpp_adapter.server.wire.failures import ErrorObject
    from pdd_llamacpp_adapter.server.wire.json_body import Json
    from pdd_llamacpp_adapter.server.wire.sampling_fields import Details
    from pdd_llamacpp_adapter.session.outcome import Outcome

DONE = Event("[DONE]")


@cache
def fingerprint() -> str:
    """Return ``system_fingerprint``: it changes with this program's version."""
    return f"pdd_device_{version('pdd-device')}"


def head(call: Call, kind: str) -> Json:
    """Return the fields with which every object of `call` begins; `kind` is its `object`."""
    return {
        "id": call.answer_id,
        "object": kind,
        "created": call.created,
        "model": call.model,
        "system_fingerprint": fingerprint(),
    }


def usage_of(outcome: Outcome) -> Json:
    """Return `usage`. Cached are the prompt tokens that the device found in its context."""
    counted = _counted(outcome.prompt_tokens, len(outcome.timeline.tokens))
    return {**counted, "prompt_tokens_details": {"cached_tokens": outcome.reused_tokens}}


def _counted(prompt: int, completion: int) -> Json:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


class ChunkWriter:
    """Writes the chunks of one stream; a subclass says what is in them and makes the rest of an `EventWriter`.

    Args:
        call: the request it answers.
        kind: the chunks' `object`.
        prompt: the prompt's token ids.
        details: what the chunks tell besides the answer.
    """

    def __init__(self, call: Call, kind: str, prompt: Sequence[int], details: Details) -> None:
        self._head = head(call, kind)
        self._prompt = prompt
        self._details = details
        self._names = TokenNames(call.runtime.vocab, details) if details.logprobs else None
        self._made = 0
        """Tokens of the answer so far."""
        self._waiting: list[ShownToken] = []
        """Tokens without text of their own, whose logprobs and ids go out with the next one's."""
        self._received_at: Sequence[float] = ()
        self._told = 0
        """So many of these times are in chunks already."""

    def fail(self, error: ErrorObject) -> Iterator[Event]:
        """Return the error, which clients raise, and the end."""
        yield Event(error.body())
        yield DONE

    def _wait(self, step: AnswerStep) -> None:
        if step.token is not None:
            self._made += 1
            self._received_at = step.received_at
            if self._names is not None or self._details.return_token_ids or self._details.sources:
                self._waiting.append(step.token)

    def _logprobs(self, tokens: Sequence[ShownToken], names: TokenNames) -> Json:
        """Return the logprobs of `tokens`, which are not empty, in the route's shape."""
        raise NotImplementedError

    def _chunk(self, body: Json, *, tokens: Sequence[ShownToken] = (), finished: Finished | None = None) -> Json:
        logprobs = self._logprobs(tokens, self._names) if tokens and self._names is not None else None
        choice: Json = {"index": 0, **body, "logprobs": logprobs, "finish_reason": None}
        if self._details.return_token_ids:
            choice["token_ids"] = [token.token_id for token in tokens]
        if finished is not None:
            choice.update(finish_reason=finished.finish_reason, stop_reason=finished.outcome.stop_reason)
        usage: Json = {"usage": None} if self._details.include_usage else {}
        if self._details.include_usage and self._details.continuous_usage_stats:
            usage = {"usage": _counted(len(self._prompt), self._made)}
        told: Json = {"pdd": self._times(tokens)} if self._details.sources else {}
        return {**self._head, "choices": [choice], **usage, **told}

    def _times(self, tokens: Sequence[ShownToken]) -> Json:
        """Return who made `tokens` and when, and when the tokens came that have come since the last chunk."""
        begin, self._told = self._told, len(self._received_at)
        return {
            "tokens": [_told(token) for token in tokens],
            "received_s": [round(at, 4) for at in self._received_at[begin : self._told]],
        }

    def _taken(self) -> list[ShownToken]:
        """Return the tokens that wait; they wait no more."""
        tokens, self._waiting = self._waiting, []
        return tokens

    def _end(self, last: Json, outcome: Outcome) -> Iterator[Event]:
        """Return the chunk with the finish reason, which carries the answer's `pdd`; the usage; and the end."""
        yield Event({**last, "pdd": outcome.summary()})
        if self._details.include_usage:
            yield Event({**self._head, "choices": [], "usage": usage_of(outcome)})
        yield DONE


def _told(token: ShownToken) -> Json:
    """Return who made `token` and when, in seconds since the request began."""
    return {
        "source": token.source.value,
        "received_s": round(token.received_at, 4),
        "shown_s": round(token.shown_at, 4),
    }
