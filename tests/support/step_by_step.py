"""For fake engines that have only `extend`, and are their own slot and memory."""

import time
from contextlib import asynccontextmanager

from pdd_llamacpp_adapter.engine.sharing import Sharing
from pdd_llamacpp_adapter.engine.slot import Step


class StepByStep:
    """`Slot.generate` by one `extend` per token, on the event loop. Never reads a refined prompt."""

    history = None
    alone_s = None
    at_work = 1
    sharing = Sharing(1)

    @asynccontextmanager
    async def exclusive(self, prompt=()):
        yield self

    def slot_for(self, prompt):
        return self

    @property
    def memory(self):
        return self

    async def generate(self, logits, choose):
        begun = time.monotonic()
        while logits is not None:
            choice = choose(logits)
            yield Step((choice,), time.monotonic() - begun)
            begun = time.monotonic()
            logits = None if choice.last else await self.extend([choice.token], want_logits=True)
