"""Streams cells, piece by piece from the back of the prompt to its front, as fast as client and bounds allow."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
from anyio import to_thread
from starlette.responses import StreamingResponse

from pdd_core.errors import InvalidCells
from pdd_core.kv.frames import END, MEDIA_TYPE
from pdd_core.kv.pieces import pieces_between

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    from starlette.types import Message, Receive, Scope, Send

    from pdd_vllm_plugin.kv.shelves import OpenParts
    from pdd_vllm_plugin.kv.token_bucket import TokenBucket

logger = logging.getLogger("vllm.pdd")

CHUNK = 256 * 1024
"""Bytes that are sent at a time: what a bound lets pass comes evenly."""
STALL_S = 30.0
"""A client that takes no chunk for so long is left: its file takes room on the shelf."""
_HEADERS = {
    "cache-control": "no-store",
    "content-encoding": "identity",  # packed cells do not get smaller, and compressing them takes a core
}


class CellsResponse(StreamingResponse):
    """Over the open files `parts`, which it closes.

    Args:
        parts: the files.
        span: positions, half-open.
        buckets: each bounds it.
        limiter: of the threads that read the files.
        then: called in the end with whether all was sent, and the bytes that were.
    """

    def __init__(
        self,
        parts: OpenParts,
        span: tuple[int, int],
        *,
        buckets: Sequence[TokenBucket],
        limiter: anyio.CapacityLimiter,
        then: Callable[[bool, int], object],
    ) -> None:
        self._parts = parts
        self._span = span
        self._buckets = buckets
        self._limiter = limiter
        self._then = then
        self._sent = 0
        self._whole = False
        super().__init__(self._chunks(), media_type=MEDIA_TYPE, headers=_HEADERS)

    async def _chunks(self) -> AsyncIterator[bytes]:
        for piece in pieces_between(*self._span):
            for number in range(self._parts.number):
                # A thread, since a file of gigabytes may have been swapped out. It is waited for also when the
                # client leaves meanwhile: the files must stay open until it has read.
                frame = await to_thread.run_sync(self._parts.frame, number, piece, limiter=self._limiter)
                for data in frame:
                    for start in range(0, len(data), CHUNK):
                        yield data[start : start + CHUNK]
        yield END
        self._whole = True

    async def stream_response(self, send: Send) -> None:
        """Send all, each chunk when the bounds let it pass and the one before it has been taken."""

        async def bounded(message: Message) -> None:
            size = len(message.get("body", b""))
            for bucket in self._buckets:
                await bucket.take(size)
            with anyio.fail_after(STALL_S):
                await send(message)
            self._sent += size
            await anyio.lowlevel.checkpoint()  # a fast client's socket takes a piece whole, and others stream, too

        await super().stream_response(bounded)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Stream until all is sent or the client leaves. What ends sooner has no last frame, and is cut."""
        try:
            await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.warning("pdd: a client has taken no cells for %g s: its stream is cut", STALL_S)
        except (InvalidCells, OSError) as error:
            logger.error("pdd: cells could not be read, their stream is cut: %s", error)  # noqa: TRY400
        finally:
            self._parts.close()
            self._then(self._whole, self._sent)
