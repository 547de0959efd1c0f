"""How long one connection may take, and how much of a request's head is read.

uvicorn bounds neither by itself. One parser that it may choose, httptools, reads a head without end.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from pdd_llamacpp_adapter.server.wire.failures import INVALID, UNAVAILABLE, ErrorObject, error_response

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from uvicorn import Config
    from uvicorn.server import ServerState

HEAD_S = 10.0
"""Seconds until a request's head is complete, from the connection's begin or the answer before. uvicorn closes a
connection sooner if nothing comes for `timeout_keep_alive` after an answer."""
REST_S = 5.0
"""Seconds for the rest of a body whose request is answered already: it may have been refused for its length."""
LEAVING_S = 2.0
"""Seconds that a client has to read why its connection ends: closed at once, it might lose the answer unread."""
UNREAD_S = 60.0
"""A client that takes none of what waits to be sent for so long is gone."""

_TOO_MANY = ErrorObject(
    503, "too many connections are open", UNAVAILABLE, code="too_many_connections", retry_after=1
)
_TOO_SLOW = ErrorObject(408, "the request's head did not come in time", INVALID, code="request_timeout")
_TOO_LARGE = ErrorObject(431, "the request's head is too large", INVALID, code="head_too_large")
_MALFORMED = ErrorObject(400, "this is no HTTP request that can be read", INVALID, code="invalid_http")


class Connection(H11Protocol):
    """uvicorn's connection, with an end to each wait for its client. An answer under way has no end here.

    Args:
        ended: called once it is over.
        is_one_too_many: its client is told so, and nothing else.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        ended: Callable[[], object] = lambda: None,
        is_one_too_many: bool = False,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._ended = ended
        self._is_one_too_many = is_one_too_many
        self._is_refused = False
        self._patience = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._unread_timer: asyncio.TimerHandle | None = None
        self._unread = sys.maxsize

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait for a request."""
        super().connection_made(transport)
        if self._is_one_too_many:
            self._refuse(_TOO_MANY)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        for timer in (self._timer, self._unread_timer):
            if timer is not None:
                timer.cancel()
        super().connection_lost(exc)
        self._ended()

    def data_received(self, data: bytes) -> None:
        """Read on, in pieces in which a head that is too large is seen before all of it is parsed."""
        most = self.config.h11_max_incomplete_event_size or len(data)
        for start in range(0, len(data), most):
            if self._is_refused or self.transport.is_closing():
                return
            super().data_received(data[start : start + most])
        self._wait()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        super().on_response_complete()
        self._wait()
        if self.transport.is_closing():
            self._watch_unread()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's signature
        """Answer a request that cannot be read."""
        size = len(self.conn.trailing_data[0])
        self._refuse(_TOO_LARGE if size > (self.config.h11_max_incomplete_event_size or size) else _MALFORMED)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection, whose client need not have read all."""
        super().timeout_keep_alive_handler()
        self._watch_unread()

    def pause_writing(self) -> None:
        """Watch whether the client still reads."""
        super().pause_writing()
        self._watch_unread()

    def resume_writing(self) -> None:
        """Note that the client has read: what waits to be sent may get more again."""
        super().resume_writing()
        self._unread = sys.maxsize

    def _wait(self) -> None:
        """Have the timer run that goes with what the client has to do next."""
        if self._is_refused:
            patience = LEAVING_S
        elif self.cycle is not None and not self.cycle.response_complete:
            patience = 0.0  # a body has its own time (`read_data`)
        else:
            patience = REST_S if self.conn.their_state is h11.SEND_BODY else HEAD_S
        if patience == self._patience and self._timer is not None:
            return  # it goes on: what trickles in does not renew it
        if self._timer is not None:
            self._timer.cancel()
        self._patience = patience
        self._timer = self.loop.call_later(patience, self._expired) if patience else None

    def _expired(self) -> None:
        if self._is_refused:
            self.transport.abort()
        elif self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._refuse(_TOO_SLOW)
            self._wait()
        else:
            self.transport.close()
            self._watch_unread()

    def _refuse(self, error: ErrorObject) -> None:
        """Send `error`, where there can be an answer, and read nothing more."""
        self._is_refused = True
        if self.cycle is not None and not self.cycle.response_complete:
            # what makes its answer is told that the client is gone
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state not in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.close()
            return
        response = error_response(error)
        headers = [*self.server_state.default_headers, *response.raw_headers, (b"connection", b"close")]
        head = h11.Response(status_code=error.status, headers=headers)
        for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.write_eof()

    def _watch_unread(self) -> None:
        if self._unread_timer is None:
            self._unread = sys.maxsize
            self._look_at_unread()

    def _look_at_unread(self) -> None:
        """Look again and again whether what waits to be sent gets less, as long as nothing is added to it."""
        self._unread_timer = None
        unread = self.transport.get_write_buffer_size()
        if not (unread and (self.flow.write_paused or self.transport.is_closing())):
            return
        if unread >= self._unread:
            self.transport.abort()
        else:
            self._unread = unread
            self._unread_timer = self.loop.call_later(UNREAD_S, self._look_at_unread)
