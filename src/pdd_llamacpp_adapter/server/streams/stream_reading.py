"""Brings a kept stream to a client, from any byte on."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from starlette.responses import Response

if TYPE_CHECKING:
    from starlette.types import Receive, Scope, Send

    from pdd_llamacpp_adapter.server.streams.kept_streams import KeptStream

EVENT_STREAM = "text/event-stream"
EVENT_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
_PIECE = 2**16
"""Bytes that are sent at a time: all that a slow client holds besides what is kept anyway."""


async def send_stream(stream: KeptStream, place: int, send: Send, send_timeout: float) -> bool:
    """Send what `stream` has from `place` on, as it comes, and the end of the response.

    Returns False where the response has no end: the client took nothing for `send_timeout` seconds, or was so slow
    that what it needs next is no longer kept. Its connection then breaks, and coming back tells it which it was.
    """
    while True:
        data = await stream.log.read(place, _PIECE)
        if data is None:
            return False
        with anyio.move_on_after(send_timeout) as patience:
            await send({"type": "http.response.body", "body": data, "more_body": bool(data)})
        if patience.cancelled_caught:
            return False
        if not data:
            return True
        place += len(data)


async def cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    """Cancel `scope` when the client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


class StreamReading(Response):
    """The rest of a kept stream, as server-sent events."""

    media_type = EVENT_STREAM

    def __init__(self, stream: KeptStream, place: int, send_timeout: float) -> None:
        # as StreamingResponse does: no body, so no content-length
        self.status_code = 200
        self.background = None
        self.init_headers(EVENT_HEADERS)
        self._stream = stream
        self._place = place
        self._send_timeout = send_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, until its end or until the client leaves."""
        with self._stream.read():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(cancel_when_gone, receive, tasks.cancel_scope)
                await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                if scope["method"] == "HEAD":
                    await send({"type": "http.response.body"})
                else:
                    await send_stream(self._stream, self._place, send, self._send_timeout)
                tasks.cancel_scope.cancel()
