"""Who may answer now, who waits, and who is sent away."""

from __future__ import annotations

import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import DeviceBusy

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

_FIRST_GUESS = 5.0
_LONGEST_ADVICE = 60.0
"""openai's clients obey ``retry-after`` up to a minute."""


class AdmissionQueue:
    """Places for answers: `max_running` at a time, `max_queue` more that wait, in the order in which they came."""

    def __init__(self, max_running: int, max_queue: int) -> None:
        self._room = max_running + max_queue
        self._places = anyio.Semaphore(max_running)
        self._usual = _FIRST_GUESS
        self.running = 0
        self.waiting = 0

    def check(self) -> None:
        """Refuse an answer that would get no place now, before work is done for it.

        Raises:
            DeviceBusy: no place is free, and none to wait in either.
        """
        if self.running + self.waiting >= self._room:
            wait = min(self._usual * (self.waiting + 1), _LONGEST_ADVICE)
            busy = f"{self.running} answers are being made and {self.waiting} are waiting: try again later"
            raise DeviceBusy(busy, retry_after=wait)

    @asynccontextmanager
    async def place(self) -> AsyncIterator[Callable[[], None]]:
        """Wait for a place, and hold it until the block ends or what this gives is called.

        Raises:
            DeviceBusy: no place is free, and none to wait in either.
        """
        self.check()
        self.waiting += 1
        try:
            await self._places.acquire()
        finally:
            self.waiting -= 1
        self.running += 1
        begun = time.monotonic()
        held = True

        def leave() -> None:
            nonlocal held
            if held:
                held = False
                self.running -= 1
                self._usual += (time.monotonic() - begun - self._usual) / 4
                self._places.release()

        try:
            yield leave
        finally:
            leave()
