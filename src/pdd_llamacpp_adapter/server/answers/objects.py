"""What OpenAI's objects for chat completions and for legacy completions have in common, whole and in chunks."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.server.answers.prepared_answer import Event
from pdd_llamacpp_adapter.server.answers.token_logprobs import TokenNames

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.server.answers.answering import Call
    from pdd_llamacpp_adapter.server.answers.prepared_answer import Finished
    from pdd_llamacpp_adapter.server.wire.failures import ErrorObject
    from pdd_llamacpp_adapter.server.wire.json_body import Json
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
    completion = len(outcome.timeline.tokens)
    return {
        "prompt_tokens": outcome.prompt_tokens,
        "completion_tokens": completion,
        "total_tokens": outcome.prompt_tokens + completion,
        "prompt_tokens_details": {"cached_tokens": outcome.reused_tokens},
    }


class ChunkWriter:
    """Writes the chunks of one stream; a subclass says what is in them and makes the rest of an `EventWriter`.

    Args:
        call: the request it answers.
        kind: the chunks' `object`.
        include_usage: whether a chunk with the usage comes before the end.
        with_logprobs: whether chunks have logprobs.
    """

    def __init__(self, call: Call, kind: str, *, include_usage: bool, with_logprobs: bool) -> None:
        self._head = head(call, kind)
        self._include_usage = include_usage
        self._names = TokenNames(call.runtime.vocab) if with_logprobs else None
        self._waiting: list[ShownToken] = []
        """Tokens without text of their own, whose logprobs go out with the next one's."""

    def fail(self, error: ErrorObject) -> Iterator[Event]:
        """Return the error, which clients raise, and the end."""
        yield Event(error.body())
        yield DONE

    def _wait(self, token: ShownToken | None) -> None:
        if self._names is not None and token is not None:
            self._waiting.append(token)

    def _chunk(self, body: Json, *, logprobs: Json | None = None, finished: Finished | None = None) -> Json:
        choice: Json = {"index": 0, **body, "logprobs": logprobs, "finish_reason": None}
        if finished is not None:
            choice.update(finish_reason=finished.finish_reason, stop_reason=finished.outcome.stop_reason)
        usage = {"usage": None} if self._include_usage else {}
        return {**self._head, "choices": [choice], **usage}

    def _end(self, last: Json, outcome: Outcome) -> Iterator[Event]:
        """Return the chunk with the finish reason, which carries the answer's `pdd`; the usage; and the end."""
        yield Event({**last, "pdd": outcome.summary()})
        if self._include_usage:
            yield Event({**self._head, "choices": [], "usage": usage_of(outcome)})
        yield DONE
