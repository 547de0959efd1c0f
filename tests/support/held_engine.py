"""A device that is late for as long as a test wants it to be."""

import anyio


class Held:
    """The real engine, which begins only when told to: the seam then lies exactly where the budget says."""

    def __init__(self, engine):
        self._engine = engine
        self.begin = anyio.Event()

    @property
    def memory(self):
        return self

    def __getattr__(self, name):
        engine = self._engine
        return getattr(engine if hasattr(engine, name) else engine.slots[0].memory, name)

    async def ready(self):
        await self.begin.wait()

    async def start(self, prompt, **options):
        await self.ready()
        return await self._engine.slots[0].memory.start(prompt, **options)
