"""How many connections there are, and what happens where the system has nothing left for another."""

from __future__ import annotations

import asyncio
import logging
import math
from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable

logger = logging.getLogger(__name__)

SPARE = 8
"""Connections that are refused at a time: each takes a moment. Further ones wait to be accepted."""
RESERVE = 24
"""Descriptors that connections leave to files, the engine and the cloud, and to connections that are refused."""
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
        self._most = most
        self._descriptors = _descriptors() - RESERVE
        self._spare = asyncio.Semaphore(SPARE)
        self._served = 0
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
            await self._spare.acquire()
            try:
                accepted, _ = await loop.sock_accept(listening)
            except OSError as error:
                self._spare.release()
                is_gone = isinstance(error, ConnectionAbortedError)  # its client left before it was accepted
                if not is_gone:
                    self._tell(f"no further connection can be accepted for now: {error.strerror}")
                await asyncio.sleep(0 if is_gone else RETRY_S)
                continue
            why = self._why_not(accepted)
            if why:
                self._tell(f"{why}: further connections are refused with a 503")
                ended: Callable[[], None] = self._spare.release
            else:
                self._spare.release()
                self._served += 1
                ended = self._ended
            connect = partial(self._connect, loop, ended=ended, is_one_too_many=bool(why))
            try:
                await loop.connect_accepted_socket(connect, accepted)
            except OSError:
                accepted.close()
                ended()

    def _why_not(self, accepted: socket.socket) -> str:
        """Return why this is one connection too many; empty where it is none."""
        if self._served >= self._most:
            return f"{self._most} connections are open, as many as may be"
        if accepted.fileno() >= self._descriptors:  # a system that numbers them takes the lowest that is free
            return "few file descriptors are left"
        return ""

    def _ended(self) -> None:
        self._served -= 1

    def _tell(self, what: str) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._told.get(what, -QUIET_S) >= QUIET_S:
            self._told[what] = now
            logger.warning(what)


def _descriptors() -> float:
    """Return how many descriptors this process may have."""
    try:
        from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit
    except ImportError:  # Windows has no such limit
        return math.inf
    most, _ = getrlimit(RLIMIT_NOFILE)
    return math.inf if most == RLIM_INFINITY else most
