"""The gate for all that a cloud says: bounded before it is read, finite numbers, valid text, or a typed refusal.

Bytes are bounded as they come in (`bounded_reading`), JSON in depth and shape as it is parsed (`parsed`), and the
cloud's own words before anybody sees them (`shown`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

import openai
from pydantic import BaseModel, ValidationError

from pdd_core.errors import CloudRefused
from pdd_core.kv.frames import MEDIA_TYPE

# openai's own HTTP client; both may be installed, and neither takes the other's streams
if TYPE_CHECKING or openai.__version__ >= "3":
    from httpx2 import AsyncByteStream
    from httpx2 import Response as Response
else:
    from httpx import AsyncByteStream, Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

Wire = TypeVar("Wire", bound=BaseModel)

MAX_BYTES = 1024 * 1024
"""Of an answer: a fingerprint of 250,000 tokens has 10 kB."""
MAX_STATE_BYTES = 8 * 1024 * 1024
"""Of a handoff's state, which has the ids of the prompt and of the refined one."""
STREAMED = {"Accept": "text/event-stream, application/json"}
"""Headers of a request whose answer is a stream, which has no length: its reader bounds each event."""
CELLS = {"Accept": f"{MEDIA_TYPE}, application/json"}
"""The same where the stream is one of cells: its reader bounds each frame."""
_SHOWN_CHARACTERS = 300


def bounded_reading() -> dict[str, Any]:
    """Return options of an HTTP client, by which it reads no more of an answer than it may have."""
    # a compressed answer could be a thousand times as long as what is counted here
    return {"headers": {"Accept-Encoding": "identity"}, "event_hooks": {"response": [_bound]}}


async def _bound(response: Response) -> None:
    """Called by the HTTP client before it reads the body."""
    encoding = response.headers.get("content-encoding", "identity")
    if encoding.lower() != "identity":
        raise CloudRefused(f"the cloud's answer is compressed, unasked: {shown(encoding)}")
    method, path = response.request.method, response.request.url.path
    streamed = response.request.headers.get("accept") in (STREAMED["Accept"], CELLS["Accept"])
    if streamed and response.status_code == 200:
        return
    # a POST may ask for a state, too
    is_state = (method == "POST" and not streamed) or (method == "GET" and "/pdd/handoffs/" in path)
    stream = cast("AsyncByteStream", response.stream)  # this client makes no other
    response.stream = _Bounded(stream, MAX_STATE_BYTES if is_state else MAX_BYTES)


class _Bounded(AsyncByteStream):
    """The bytes of an answer, up to a limit."""

    def __init__(self, stream: AsyncByteStream, limit: int) -> None:
        self._stream = stream
        self._limit = limit

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = self._limit
        async for piece in self._stream:
            left -= len(piece)
            if left < 0:
                raise CloudRefused(f"the cloud's answer has more than {self._limit:,} bytes")
            yield piece

    async def aclose(self) -> None:
        """Close the connection's own stream."""
        await self._stream.aclose()


def parsed(body: bytes, wire: type[Wire]) -> Wire:
    """Read an answer.

    pydantic's reader refuses more than 200 levels, and text that is not Unicode.

    Raises:
        CloudRefused: it is no JSON, or not a `wire`.
        SchemaVersionError: the cloud speaks a newer major version of the wire schema.
    """
    try:
        return wire.model_validate_json(body)
    except ValidationError as error:
        raise _wrong(error, wire, "answer") from error


def checked(value: object, wire: type[Wire]) -> Wire:
    """Return a part of an event, whose JSON was read already. Raises as `parsed`."""
    try:
        return wire.model_validate(value)
    except ValidationError as error:
        raise _wrong(error, wire, "event") from error


def _wrong(error: ValidationError, wire: type[Wire], what: str) -> CloudRefused:
    problem = error.errors(include_url=False, include_context=False, include_input=False)[0]
    unreadable = problem["type"] == "json_invalid"
    why = "it cannot be read as JSON" if unreadable else f"{error.error_count()} fields are wrong"
    return CloudRefused(f"the cloud's {what} is not a {wire.__name__}: {why}")


def shown(text: str) -> str:
    """Return the cloud's own words as they may be logged or sent on: one short line of valid text."""
    line = "".join(character if character.isprintable() else " " for character in text[:_SHOWN_CHARACTERS])
    return line if len(text) <= _SHOWN_CHARACTERS else f"{line}..."
