"""Who may use the engine: answers in line, and work for idle times that makes way for them at once."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable


class EngineQueue:
    """One holder at a time. Belongs to the event loop that waits in it."""

    def __init__(self) -> None:
        self._lock = anyio.Lock()
        self._answers = 0
        self._idle_work: anyio.CancelScope | None = None
        self._answered: anyio.Event | None = None

    @asynccontextmanager
    async def answer(self) -> AsyncIterator[None]:
        """Hold the engine for one answer, after those that came before. Idle work is cancelled."""
        self._answers += 1
        try:
            if self._idle_work is not None:
                self._idle_work.cancel()
            async with self._lock:
                yield
        finally:
            self._answers -= 1
            if not self._answers and self._answered is not None:
                self._answered.set()

    async def answered(self) -> None:
        """Return when an answer has let go of the engine and no other is waiting for it."""
        self._answered = anyio.Event()
        await self._answered.wait()

    async def when_idle(self, work: Callable[[], Awaitable[None]]) -> None:
        """Hold the engine for `work` until an answer wants it: the work is then cancelled, without an error.

        While an answer has or wants the engine, the work is not begun. Not a context manager: a cancelled wait for
        the lock would leave one nothing to yield.
        """
        if self._answers:
            return
        with anyio.CancelScope() as self._idle_work:
            try:
                async with self._lock:
                    await work()
            finally:
                self._idle_work = None
