"""A first look at how fast the device is, before the first answer needs it: under a second on a small model."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.engine.speed import Work

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
    from pdd_llamacpp_adapter.engine.speed import DeviceSpeed

_TOKENS = 96
_STEPS = 6


async def probe(engine: DeviceEngine, speed: DeviceSpeed, *, size: int) -> Work:
    """Let `engine` process some tokens of a vocabulary of `size`; tell `speed`, and return the work.

    Raises:
        DeviceEngineFailed: llama.cpp returned an error.
    """
    work = Work()
    async with engine.exclusive():
        await engine.start([0])
        ids = [token % size for token in range(min(_TOKENS, engine.n_ctx // 2))]
        for batch in (ids[:8], ids, *([1] for _ in range(_STEPS))):
            begun = time.monotonic()
            await engine.extend(batch, want_logits=True)
            seconds = time.monotonic() - begun
            speed.measured(len(batch), seconds)
            work.add(len(batch), seconds)
        await engine.rewind(0)
    return work
