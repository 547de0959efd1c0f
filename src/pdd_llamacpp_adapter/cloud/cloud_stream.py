"""What vLLM streams, in this project's words."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import anyio
import openai

from pdd_core.errors import CloudLost, CloudRefused
from pdd_core.optin import STOP_REASON
from pdd_core.timeline import TokenLogprob, TokenLogprobs

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from openai.types import Completion
    from openai.types.completion_choice import Logprobs


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
    stream: openai.AsyncStream[Completion], *, top_logprobs: int = 0
) -> AsyncGenerator[CloudChunk]:
    """Yield chunks up to the one with a finish reason; close the stream in any case.

    Of each token's logprobs, the `top_logprobs` best are passed on: vLLM adds the chosen one to them.

    Raises:
        CloudRefused: an error event about the request itself, before the first token.
        CloudLost: the stream broke off, was aborted, or ended without a finish reason.
    """
    started = False
    try:
        while True:
            chunk = _chunk(await anext(stream), top_logprobs)
            if chunk is None:
                continue
            started = True
            yield chunk
            if chunk.end is not None:
                return
    except StopAsyncIteration:
        raise CloudLost("the stream ended without a finish reason") from None
    except (CloudLost, CloudRefused):
        raise
    except openai.APIError as error:
        if not started and _is_refusal(error):
            raise CloudRefused(error.message, code=error.code) from error
        raise CloudLost(f"the stream broke off: {error.message}") from error
    except Exception as error:  # an event cut short is no JSON; older openai clients let the transport's own pass
        raise CloudLost(f"the stream broke off: {type(error).__name__}") from error
    finally:
        with anyio.CancelScope(shield=True):
            await stream.close()


def _chunk(event: Completion, top: int) -> CloudChunk | None:
    if not event.choices:
        return None  # usage
    choice = event.choices[0]
    token_ids = getattr(choice, "token_ids", None)
    if token_ids is not None and not _are_ids(token_ids):
        raise CloudLost("the cloud sends token ids that are none")
    if token_ids is None and choice.text:
        raise CloudRefused("the cloud streams text without token ids: it does not know vLLM's return_token_ids")
    end = _end(choice.finish_reason, getattr(choice, "stop_reason", None))
    return CloudChunk(tuple(token_ids or ()), str(choice.text or ""), end, _logprobs(choice.logprobs, top))


def _are_ids(value: object) -> bool:
    """The openai package takes whatever comes."""
    return isinstance(value, list) and all(type(token) is int and token >= 0 for token in value)


def _logprobs(given: Logprobs | None, count: int) -> tuple[TokenLogprobs, ...]:
    """Read completions' logprobs, whose tokens are ``token_id:N`` (vLLM's ``return_tokens_as_token_ids``)."""
    if given is None or not given.tokens or not given.token_logprobs:
        return ()
    tops = given.top_logprobs or [{}] * len(given.tokens)
    return tuple(
        TokenLogprobs(
            TokenLogprob(_token_id(token), float(logprob)),
            tuple(
                TokenLogprob(_token_id(other), float(value))
                for other, value in sorted((top or {}).items(), key=lambda entry: -entry[1])[:count]
            ),
        )
        for token, logprob, top in zip(given.tokens, given.token_logprobs, tops, strict=False)
    )


def _token_id(name: str) -> int:
    return int(name.removeprefix("token_id:"))


def _end(finish_reason: str | None, stop_reason: int | str | None) -> CloudEnd | None:
    match finish_reason:
        case None:
            return None
        case "stop":
            return CloudEnd.STOP
        case "length":
            return CloudEnd.BUDGET if stop_reason == STOP_REASON else CloudEnd.LENGTH
        case _:
            raise CloudLost(f"the cloud ended the stream with finish reason {finish_reason!r}")


def _is_refusal(error: openai.APIError) -> bool:
    """An error event of a stream whose HTTP status was long sent as 200: vLLM's own status is its code."""
    code: Any = error.code if not isinstance(error.body, dict) else error.body.get("code")
    return isinstance(code, int) and 400 <= code < 500
