"""Runs the application: a socket, uvicorn, and an end that lets answers finish."""

from __future__ import annotations

import errno
import signal
import socket
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import uvicorn

from pdd_core.errors import ConfigurationError
from pdd_llamacpp_adapter.server.acceptor import Acceptor
from pdd_llamacpp_adapter.server.app import create_app
from pdd_llamacpp_adapter.server.connections import Connection
from pdd_llamacpp_adapter.server.signals import received_signals

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Iterator

    from pdd_llamacpp_adapter.server.answers.service import Service

_CLOSING = 5
"""Seconds that connections have to close once all answers have ended."""


async def serve(
    service: Service,
    *,
    host: str = "127.0.0.1",
    port: int = 8080,
    grace: float = 10.0,
    on_started: Callable[[str], object] | None = None,
    signals: bool = True,
) -> None:
    """Serve until SIGINT or SIGTERM, or until cancelled, and return when everything has come to rest.

    After a signal new requests are refused, and running answers have `grace` seconds to finish; a second signal
    ends them at once.

    Args:
        service: what to serve; its runtime may be set later.
        host: address to listen on.
        port: port to listen on; 0 takes a free one.
        grace: seconds.
        on_started: called with the server's URL, such as ``http://127.0.0.1:8080``, once it accepts connections.
        signals: obey signals; only in the main thread, to which they go.

    Raises:
        ConfigurationError: nobody can listen there: the port is in use, or the address is none of this machine.
    """
    sockets = await _listen(host, port)
    url = _url(host, sockets[0].getsockname()[1])
    server = _Server(service, lambda: None if on_started is None else on_started(url))
    async with anyio.create_task_group() as tasks:
        obeyed = (signal.SIGINT, signal.SIGTERM) if signals else ()
        with received_signals(*obeyed) as received:

            async def obey() -> None:
                patience = grace
                async for _ in received:
                    tasks.start_soon(stop, patience)
                    patience = 0

            async def stop(patience: float) -> None:
                await service.shut_down(patience)
                server.should_exit = True

            tasks.start_soon(obey)
            try:
                await server.serve(sockets)
            except anyio.get_cancelled_exc_class():
                with anyio.move_on_after(_CLOSING, shield=True):
                    await service.shut_down(0)
                    await server.shutdown(sockets)
                raise
            finally:
                for listening in sockets:
                    listening.close()
            tasks.cancel_scope.cancel()


class _Server(uvicorn.Server):
    def __init__(self, service: Service, on_started: Callable[[], object]) -> None:
        super().__init__(
            uvicorn.Config(
                create_app(service),
                http=Connection,
                h11_max_incomplete_event_size=service.limits.max_head_bytes,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=_CLOSING,
            )
        )
        self._on_started = on_started
        self._acceptor = Acceptor(self._connect, service.limits.max_connections)
        self.servers = []  # uvicorn sets it on start-up, and its shutdown reads it

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals to `serve`: uvicorn would raise them again at the end."""
        yield

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup([])  # without sockets: they are the acceptor's
        self._acceptor.start(sockets or [])
        self._on_started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await self._acceptor.stop()
        await super().shutdown(sockets)

    def _connect(self, loop: asyncio.AbstractEventLoop, **options: Any) -> Connection:
        return Connection(self.config, self.server_state, self.lifespan.state, loop, **options)


async def _listen(host: str, port: int) -> list[socket.socket]:
    """Return a listening socket for each address of `host`, all with one port."""
    try:
        found = await anyio.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigurationError(f"host {host!r} is no address of this machine: {error.strerror}") from error
    sockets: list[socket.socket] = []
    try:
        for family, _, _, _, address in dict.fromkeys(found):
            own_port = address[1] or (sockets[0].getsockname()[1] if sockets else 0)
            sockets.append(socket.create_server((address[0], own_port), family=family))
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL and sockets:
            return sockets  # a name such as localhost may have an IPv6 address that this machine has not
        for listening in sockets:
            listening.close()
        raise ConfigurationError(_why_not(error, host, port)) from error
    return sockets


def _why_not(error: OSError, host: str, port: int) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: stop the other program or choose another port"
    return f"cannot listen on port {port} of {host}: {error.strerror}"


def _url(host: str, port: int) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
