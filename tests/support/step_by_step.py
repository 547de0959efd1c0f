"""For fake engines that have only `extend`, and are their own slot and memory."""

from contextlib import asynccontextmanager

import anyio

from pdd_llamacpp_adapter.engine.sharing import Sharing
from pdd_llamacpp_adapter.engine.steps import Step


class StepByStep:
    """`Slot.generate` by one `extend` per token, on the event loop. Never reads a refined prompt."""

    history = None
    alone_s = None
    drafts = False
    is_decoding = False
    sharing = Sharing(1)

    @asynccontextmanager
    async def exclusive(self, prompt=()):
        yield self

    def slot_for(self, prompt):
        return self

    @property
    def memory(self):
        return self

    async def generate(self, logits, choose, drafter=None):
        step = Step((choose(logits),))
        yield step
        while not step.choices[-1].last:
            begun = anyio.current_time()
            logits = await self.extend([step.choices[-1].token], want_logits=True)
            step = Step((choose(logits),), 1, anyio.current_time() - begun)
            yield step
