"""A request's body as JSON: of bounded length, of a bounded number of values, and as the standard has it."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING, Any

import anyio
from pydantic_core import from_json

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.wire.failures import TOO_LARGE, TOO_SLOW

if TYPE_CHECKING:
    from starlette.requests import Request

Json = dict[str, Any]
"""A JSON object."""

BODY_S = 30.0
"""Seconds for a body, and more the longer it is: as many as its bytes take at `BODY_RATE`."""
BODY_RATE = 8 * 2**10
"""Bytes per second, over the whole body. The slowest of mobile links send more."""

_MAY_BE_INFINITE = re.compile(rb"\d[eE]\+?\d{3}|\d{309}")
"""Of a number too large for a float, the exponent or so many digits."""
# one without an end goes to the end of the text, so that nothing is read twice
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_MARKS = (b",", b"[", b"{")
"""Before every value but the first and those of an object's keys there is one of these."""


async def read_data(request: Request, *, limit: int) -> bytes:
    """Read a request's body.

    Raises:
        InvalidRequest: it is longer than `limit` bytes (HTTP status 413), or comes too slowly (408).
    """
    data = bytearray()
    declared = request.headers.get("content-length", "")
    too_long = declared.isascii() and declared.isdigit() and int(declared[:18]) > limit
    if not too_long:
        began = anyio.current_time()
        with anyio.move_on_at(began + BODY_S) as patience:
            async for chunk in request.stream():
                data += chunk
                too_long = len(data) > limit
                if too_long:
                    break
                patience.deadline = began + BODY_S + len(data) / BODY_RATE
        if patience.cancelled_caught:
            raise InvalidRequest("the request's body comes too slowly", code=TOO_SLOW)
    if too_long:
        raise InvalidRequest(f"the request's body is longer than {limit} bytes", code=TOO_LARGE)
    return bytes(data)


def parse(data: bytes, *, most: int) -> Any:
    """Read JSON as the standard has it: an answer that repeats some of its request can then be sent, too.

    Args:
        data: the body.
        most: values that there may be. Reading millions of them, in a few megabytes, takes seconds, and nothing
            else runs meanwhile.

    Raises:
        InvalidRequest: it is not JSON, a number is too large for a float, or there are more values.
    """
    if has_more_marks(data, most):
        raise InvalidRequest(f"the request's body holds more than {most} values", code="too_many_values")
    try:
        body = from_json(data, allow_inf_nan=False)
    except ValueError as error:
        raise _not_json(str(error)) from None
    left = [body] if _MAY_BE_INFINITE.search(data) else []
    while left:
        value = left.pop()
        if isinstance(value, dict):
            left.extend(value.values())
        elif isinstance(value, list):
            left.extend(value)
        elif isinstance(value, float) and not math.isfinite(value):
            raise _not_json("a number is too large")
    return body


def has_more_marks(data: bytes, most: int) -> bool:
    """Return whether JSON has more commas and opening brackets than `most`, not counting those in strings.

    Its time grows with `most` where there are so many, not with the length of `data`.
    """
    if sum(map(data.count, _MARKS)) <= most:
        return False
    marks = end = 0
    for strings, string in enumerate(_STRING.finditer(data)):
        marks += sum(data.count(mark, end, string.start()) for mark in _MARKS)
        end = string.end()
        # JSON has at most two strings, a key and a value, per mark
        if max(marks, strings / 2) > most:
            return True
    return marks + sum(data.count(mark, end) for mark in _MARKS) > most


def _not_json(problem: str) -> InvalidRequest:
    return InvalidRequest(f"the body is not JSON that can be read: {problem}", code="invalid_json")
