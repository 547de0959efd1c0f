"""What vLLM streams, in this project's words."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudLost, CloudRefused
from pdd_core.optin import STOP_REASON
from pdd_core.timeline import TokenLogprob, TokenLogprobs
from pdd_llamacpp_adapter.cloud.cloud_event import read_event
from pdd_llamacpp_adapter.cloud.cloud_gate import shown
from pdd_llamacpp_adapter.cloud.event_data import event_data

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    import openai
    from openai.types import Completion

    from pdd_llamacpp_adapter.cloud.cloud_event import Choice, CloudEvent, Logprobs, Problem

_DONE = b"[DONE]"
ANY_ID = 2**31
"""Ids are below this: llama.cpp's are C ints."""
MAX_EVENT_BYTES = 256 * 1024
"""Of one event, besides what follows: its frame, and the longest texts of single tokens."""
_BYTES_PER_ID = 12
_BYTES_PER_TOKEN = 64
_BYTES_PER_LOGPROB = 48
_LEFT_OUT = "{}: a gateway in between leaves them out, or the server does not know vLLM's {}"


class CloudEnd(StrEnum):
    """How a leg of the cloud's came to its regular end."""

    BUDGET = "budget"
    """The decode budget is used up: the device goes on, or another leg."""
    STOP = "stop"
    LENGTH = "length"


@dataclass(frozen=True, slots=True)
class CloudChunk:
    """What came in one event."""

    token_ids: tuple[int, ...]
    """Any number: one is usual, several come with speculative decoding or a slow reader."""
    text: str
    end: CloudEnd | None
    """Set on the last chunk."""
    logprobs: tuple[TokenLogprobs, ...] = ()
    """One per token where the request asked for them, else none."""


async def read_stream(
    stream: openai.AsyncStream[Completion],
    *,
    prompt_tokens: int = 0,
    max_tokens: int = 0,
    top_logprobs: int = 0,
    ids_below: int = ANY_ID,
    longest: int = 0,
    on_update: Callable[[object], object] | None = None,
) -> AsyncGenerator[CloudChunk]:
    """Yield chunks up to the one with a finish reason; close the stream in any case.

    Each event says how many tokens there are by now (vLLM's ``continuous_usage_stats``): one that was lost on the
    way, or came twice, is noticed. An event without tokens yields nothing: a cloud that sends no others is silent.

    Args:
        stream: of openai's client, with nothing read yet. Its own reader of events has no bounds.
        prompt_tokens: length of the prompt, whose ids are in the first event.
        max_tokens: that were asked for. All may come in one event, if nobody read meanwhile.
        top_logprobs: how many of each token's best are passed on: vLLM adds the chosen one to them.
        ids_below: size of the vocabulary.
        longest: tokens before which an answer ends for its length only by a decode budget; 0 where there is none.
        on_update: called with each update of a request that has ``pdd_inline``, which is unchecked JSON. Such a
            stream is read to its end: an update may come behind the last chunk.

    Raises:
        CloudRefused: an error event about the request itself, before the first token, or a server that sends no
            token ids, or does not count them.
        CloudLost: the stream broke off, was aborted, lacks or repeats an event, has an event that cannot be read,
            or ended without a finish reason.
    """
    received, ended = 0, False
    # the prompt's ids are in the first event; a refined prompt has as many again, and their positions
    limit = MAX_EVENT_BYTES + _BYTES_PER_ID * prompt_tokens * (1 if on_update is None else 2)
    # the chosen one, its id and its value count as well. Reading JSON holds up everybody: no more than it can be
    limit += max_tokens * (_BYTES_PER_TOKEN + _BYTES_PER_LOGPROB * (top_logprobs + 3))
    try:
        async with aclosing(event_data(stream.response.aiter_bytes(), limit=limit)) as events:
            async for data in events:
                if data.startswith(_DONE):
                    break
                event = read_event(data)
                _check_error(event.error, started=received > 0)
                if on_update is not None and event.pdd is not None:
                    on_update(event.pdd)
                if ended or not event.choices:
                    continue
                chunk = _chunk(event.choices[0], top_logprobs, ids_below)
                received += len(chunk.token_ids)
                _check_count(event, chunk, received)
                if chunk.end is CloudEnd.LENGTH and received < longest:
                    # a gateway in between leaves out vLLM's stop_reason
                    chunk = replace(chunk, end=CloudEnd.BUDGET)
                if chunk.token_ids or chunk.end is not None:
                    yield chunk
                ended = chunk.end is not None
                if ended and on_update is None:
                    return
    except (CloudLost, CloudRefused):
        raise
    except Exception as error:  # the transport's own: their names differ between openai's versions
        raise CloudLost(f"the stream broke off: {type(error).__name__}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await stream.close()
    if not ended:
        raise CloudLost("the stream ended without a finish reason")


def _check_count(event: CloudEvent, chunk: CloudChunk, received: int) -> None:
    if event.usage is not None:
        if event.usage.completion_tokens != received:
            counted = event.usage.completion_tokens
            raise CloudLost(f"the stream lacks or repeats an event: {received} tokens of {counted} have come")
    elif chunk.token_ids:
        raise CloudRefused(_LEFT_OUT.format("the cloud does not count its tokens", "continuous_usage_stats"))


def _chunk(choice: Choice, top: int, ids_below: int) -> CloudChunk:
    ids = choice.token_ids
    if ids is None and choice.text:
        raise CloudRefused(_LEFT_OUT.format("the cloud streams text without token ids", "return_token_ids"))
    if ids and max(ids) >= ids_below:
        raise CloudLost("the cloud sends a token id that is not in the vocabulary")
    end = _end(choice.finish_reason, choice.stop_reason)
    return CloudChunk(tuple(ids or ()), choice.text or "", end, _logprobs(choice.logprobs, top))


def _logprobs(given: Logprobs | None, count: int) -> tuple[TokenLogprobs, ...]:
    if given is None or not given.tokens or not given.token_logprobs:
        return ()
    tops = given.top_logprobs or [{}] * len(given.tokens)
    return tuple(
        TokenLogprobs(
            TokenLogprob(_token_id(token), logprob),
            tuple(
                TokenLogprob(_token_id(other), value)
                for other, value in sorted((top or {}).items(), key=lambda entry: -entry[1])[:count]
            ),
        )
        for token, logprob, top in zip(given.tokens, given.token_logprobs, tops, strict=False)
    )


def _token_id(name: str) -> int:
    digits = name.removeprefix("token_id:")
    if not (digits.isascii() and digits.isdecimal() and len(digits) <= len(str(ANY_ID)) and int(digits) < ANY_ID):
        raise CloudLost("the cloud sends likelihoods of tokens without their ids")
    return int(digits)


def _end(finish_reason: str | None, stop_reason: int | str | None) -> CloudEnd | None:
    match finish_reason:
        case None:
            return None
        case "stop":
            return CloudEnd.STOP
        case "length":
            return CloudEnd.BUDGET if stop_reason == STOP_REASON else CloudEnd.LENGTH
        case _:
            raise CloudLost(f"the cloud ended the stream with finish reason {shown(finish_reason)!r}")


def _check_error(error: Problem | str | None, *, started: bool) -> None:
    """Read an error event of a stream whose HTTP status was long sent as 200: vLLM's own status is its code."""
    if error is None:
        return
    message, code = (error, None) if isinstance(error, str) else (error.message, error.code)
    if not started and isinstance(code, int) and 400 <= code < 500:
        raise CloudRefused(shown(message), code=code)
    raise CloudLost(f"the stream broke off: {shown(message)}")
