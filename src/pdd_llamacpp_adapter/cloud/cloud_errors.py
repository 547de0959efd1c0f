"""Errors of openai's client in this project's words."""

from __future__ import annotations

import math
import time
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, TypeVar

import openai

from pdd_core.errors import CloudError, CloudRefused, CloudUnreachable
from pdd_llamacpp_adapter.cloud.cloud_gate import shown
from pdd_llamacpp_adapter.cloud.cloud_stream import ANY_ID

if TYPE_CHECKING:
    from collections.abc import Awaitable

Answer = TypeVar("Answer")


async def answered(call: Awaitable[Answer]) -> Answer:
    """Return what `call`, of openai's client, returns.

    Raises:
        CloudError: it failed, whatever the package and its transport raise.
    """
    try:
        return await call
    except CloudError:
        raise
    except openai.OpenAIError as error:
        raise translated(error) from error
    except Exception as error:  # what the package and its transport let pass of a strange answer
        raise CloudRefused(f"the cloud's answer cannot be read: {type(error).__name__}") from error


def translated(error: openai.OpenAIError) -> CloudError:
    """Return `error` in this project's words."""
    if isinstance(error, openai.APIConnectionError):
        if isinstance(error.__cause__, CloudError):  # openai 2 takes the gate's own for the transport's
            return error.__cause__
        url = error.request.url
        return CloudUnreachable(f"no connection to {url.host}:{url.port}: {error.message}")
    if isinstance(error, openai.APIStatusError):
        # vLLM's answer to a wrong key is a bare {"error": "Unauthorized"}
        message = error.body.get("message") if isinstance(error.body, dict) else error.body
        text = shown(message if message and isinstance(message, str) else error.message)
        return CloudRefused(
            f"{text} (HTTP {error.status_code})",
            status=error.status_code,
            code=_code(error.code),
            retry_after=_retry_after(error.response.headers.get("retry-after", "")),
        )
    return CloudRefused(shown(str(error)))


def _retry_after(value: str) -> float | None:
    """Return the seconds that ``Retry-After`` says, in either of its forms; None if it says none."""
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def _code(code: object) -> str | int | None:
    """The openai package takes whatever comes."""
    if isinstance(code, str):
        return shown(code)
    return code if isinstance(code, int) and abs(code) < ANY_ID else None
