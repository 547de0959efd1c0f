"""How many connections there are, and what happens where the system has nothing left for another."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

logger = logging.getLogger(__name__)

SPARE = 8
"""Connections beyond the most that there may be, to tell their clients so; further ones wait until one ends."""
RETRY_S = 1.0
"""Seconds until the next try to accept, where the system has nothing left for it; as asyncio waits itself."""
QUIET_S = 60.0
"""Seconds between two lines in the log about the same trouble."""


class Acceptor:
    """Accepts connections, as many as there may be, and waits where the system has nothing left for another.

    asyncio's own `Server` tries a whole backlog in vain then, and logs a traceback for each.

    Args:
        connect: makes the protocol of one connection, of the loop, `ended`, to be called once it is over, and
            `is_one_too_many`.
        most: connections at a time.
    """

    def __init__(self, connect: Callable[..., asyncio.Protocol], most: int) -> None:
        self._connect = connect
        self._most = _affordable(most)
        self._places = asyncio.Semaphore(self._most + SPARE)
        self._open = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._told: dict[str, float] = {}

    def start(self, sockets: list[socket.socket]) -> None:
        """Accept from `sockets`, which listen."""
        for listening in sockets:
            listening.setblocking(False)
        self._tasks = [asyncio.create_task(self._accept(listening)) for listening in sockets]

    async def stop(self) -> None:
        """Accept no more. Connections that are open stay so."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        self._tasks = []

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._places.acquire()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                self._places.release()
                is_gone = isinstance(error, ConnectionAbortedError)  # its client left before it was accepted
                if not is_gone:
                    self._tell(f"no further connection can be accepted for now: {error.strerror}")
                await asyncio.sleep(0 if is_gone else RETRY_S)
                continue
            self._open += 1
            is_one_too_many = self._open > self._most
            if is_one_too_many:
                self._tell(f"{self._most} connections are open, as many as may be: others are refused with a 503")
            connect = partial(self._connect, loop, ended=self._ended, is_one_too_many=is_one_too_many)
            try:
                await loop.connect_accepted_socket(connect, accepted)
            except OSError:
                accepted.close()
                self._ended()

    def _ended(self) -> None:
        self._open -= 1
        self._places.release()

    def _tell(self, what: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told.get(what, -QUIET_S) >= QUIET_S:
            self._told[what] = now
            logger.warning(what)


def _affordable(most: int) -> int:
    """Return how many connections there may be: files, the engine and the cloud need descriptors, too."""
    with suppress(ImportError):  # Windows has no such limit
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

        descriptors, _ = getrlimit(RLIMIT_NOFILE)
        if descriptors != RLIM_INFINITY:
            return max(1, min(most, descriptors // 2))
    return most
