"""Server-sent events, as far as vLLM uses them: https://html.spec.whatwg.org/multipage/server-sent-events.html."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING

from pdd_core.errors import CloudLost

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


async def event_data(pieces: AsyncIterator[bytes], *, limit: int) -> AsyncGenerator[bytes]:
    """Yield the data of each event that has any. One that the stream's end cuts off is no event.

    Raises:
        CloudLost: a line, or an event's data, has more than `limit` bytes.
    """
    data: list[bytes] = []
    size = 0
    async with aclosing(_lines(pieces, limit)) as lines:
        async for line in lines:
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
                size += len(line)
                _check(size, limit)
            elif not line and data:
                yield b"\n".join(data)
                data, size = [], 0


async def _lines(pieces: AsyncIterator[bytes], limit: int) -> AsyncGenerator[bytes]:
    """Yield lines without their ends, which are CR, LF or both; a byte order mark may be before the first."""
    rest = bytearray()
    begun = False
    async for piece in pieces:
        ends = rest.endswith(b"\r") or b"\n" in piece or b"\r" in piece
        rest += piece
        if not ends:
            _check(len(rest), limit)  # and not joined again and again: an endless line would cost its square
            continue
        lines = bytes(rest).splitlines(keepends=True)
        # what has no end yet, or one that may be half of one
        rest = bytearray(b"" if lines[-1].endswith(b"\n") else lines.pop())
        for line in lines:
            _check(len(line), limit)
            yield (line if begun else line.removeprefix(_BYTE_ORDER_MARK)).rstrip(b"\r\n")
            begun = True
    if rest.endswith(b"\r"):
        yield bytes(rest[:-1])


def _check(size: int, limit: int) -> None:
    if size > limit:
        raise CloudLost(f"the cloud sends an event of more than {limit:,} bytes")
