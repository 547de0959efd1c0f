"""A device that is late for as long as a test wants it to be."""

from contextlib import asynccontextmanager

import anyio


class _Behind:
    """Everything that something else has, but for what a subclass has itself."""

    def __init__(self, real):
        self._real = real

    def __getattr__(self, name):
        return getattr(self._real, name)


class OwnSlot(_Behind):
    """The real engine and its slot in one: a subclass has a method of the slot's itself."""

    @asynccontextmanager
    async def exclusive(self, prompt=()):
        async with self._real.exclusive(prompt) as self.slot:
            yield self

    def __getattr__(self, name):
        slot = self._real.slots[0]
        return getattr(slot if hasattr(slot, name) else self._real, name)


class Held(_Behind):
    """The real engine, which begins only when told to: the seam then lies exactly where the budget says."""

    def __init__(self, engine):
        super().__init__(engine)
        self.begin = anyio.Event()

    @asynccontextmanager
    async def exclusive(self, prompt=()):
        async with self._real.exclusive(prompt) as slot:
            await self.ready()
            yield slot

    async def ready(self):
        await self.begin.wait()
