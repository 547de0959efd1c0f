"""Who has which of the engine's slots: answers in line, and idle work, which makes way for them at once."""

from __future__ import annotations

from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from pdd_llamacpp_adapter.engine.slot import Slot

_ENOUGH_HELD = 0.1
"""Of a prompt: with less, the slot that was used longest ago is taken, and the others keep their texts."""


class EngineQueue:
    """Gives each of `slots` to one holder at a time. Belongs to the event loop that waits in it."""

    def __init__(self, slots: Sequence[Slot]) -> None:
        self._free = list(slots)
        """Those that were used longest ago come first."""
        self._slots = tuple(slots)
        self._places = anyio.Semaphore(len(slots))
        self._answers = 0
        self._idle_work: anyio.CancelScope | None = None
        self._answered: anyio.Event | None = None

    def best(self, prompt: Sequence[int]) -> Slot:
        """Return the slot for `prompt`: of those that no answer has, or of all where there is none."""
        slots = self._free or self._slots
        if len(slots) == 1 or not prompt:
            return slots[0]
        held = [slot.memory.holds(prompt) for slot in slots]
        most = max(held)
        return slots[held.index(most) if most > _ENOUGH_HELD * len(prompt) else 0]

    @asynccontextmanager
    async def answer(self, prompt: Sequence[int] = ()) -> AsyncIterator[Slot]:
        """Hold a slot for one answer, after those that came before. Idle work is cancelled."""
        self._answers += 1
        try:
            if self._idle_work is not None:
                self._idle_work.cancel()
            async with self._places:
                slot = self.best(prompt)
                self._free.remove(slot)
                try:
                    yield slot
                finally:
                    self._free.append(slot)
        finally:
            self._answers -= 1
            if not self._answers and self._answered is not None:
                self._answered.set()

    async def answered(self) -> None:
        """Return when an answer has let go of its slot and no other is waiting for one, or at work."""
        self._answered = anyio.Event()
        await self._answered.wait()

    async def when_idle(self, work: Callable[[Slot], Awaitable[None]]) -> None:
        """Do `work` for each slot in turn, until an answer comes: it is then cancelled, without an error.

        While an answer has or wants a slot, the work is not begun. Not a context manager: a cancelled wait would
        leave one nothing to yield.
        """
        if self._answers:
            return
        with anyio.CancelScope() as self._idle_work:
            try:
                async with AsyncExitStack() as places:
                    for _ in self._slots:  # all of them: an answer waits until what was begun is undone
                        await places.enter_async_context(self._places)
                    for slot in self._slots:
                        await work(slot)
            finally:
                self._idle_work = None
