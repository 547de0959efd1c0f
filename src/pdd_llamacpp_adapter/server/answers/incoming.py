"""Requests whose answers have not begun, received or prepared, and what a stop does to them."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

import anyio

from pdd_core.errors import ServerStopping

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")


class IncomingRequests:
    """Requests on their way to an answer. Once the server stops, none of them gets there.

    Args:
        changed: called when there is one less.
    """

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed
        self._stopping = False
        self._received: set[anyio.CancelScope] = set()
        self._prepared: set[anyio.CancelScope] = set()

    def __len__(self) -> int:
        return len(self._received) + len(self._prepared)

    async def receive(self, body: Callable[[], Awaitable[T]]) -> T:
        """Return what `body` does: it waits for a client.

        Raises:
            ServerStopping: the server was told to stop before there was a result.
        """
        return await self._unless_stopped(body, self._received)

    async def prepare(self, prompt: Callable[[], Awaitable[T]]) -> T:
        """Return what `prompt` does: it may take long.

        Raises:
            ServerStopping: as in `receive`.
        """
        return await self._unless_stopped(prompt, self._prepared)

    def refuse(self) -> None:
        """Let no request through any more. One that is received is told so behind its body.

        A client that still sends might miss an answer that comes before.
        """
        self._stopping = True
        self._cancel(self._prepared)

    def end(self) -> None:
        """Refuse also those whose bodies have still not come."""
        self._stopping = True
        self._cancel(self._prepared | self._received)

    @staticmethod
    def _cancel(scopes: set[anyio.CancelScope]) -> None:
        for scope in scopes:
            scope.cancel()

    async def _unless_stopped(self, work: Callable[[], Awaitable[T]], scopes: set[anyio.CancelScope]) -> T:
        scope = anyio.CancelScope()
        scopes.add(scope)
        try:
            with scope:
                if not self._stopping:
                    result = await work()
        finally:
            scopes.discard(scope)
            self._changed()
        if self._stopping:
            raise ServerStopping("The server is shutting down")
        return result
