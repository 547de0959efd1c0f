"""Idle time, used: reads the whole of what a context holds in a refined form, for the chat's next turn."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import DeviceError, named
from pdd_llamacpp_adapter.engine.history import common_prefix

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
    from pdd_llamacpp_adapter.engine.slot import Slot

logger = logging.getLogger(__name__)


async def upgrade_when_idle(engine: DeviceEngine, chunk: Callable[[], int]) -> None:
    """After each answer, if nobody waits for the engine, have it read what the answer's prompt left out.

    Runs until it is cancelled.

    Args:
        engine: the engine.
        chunk: tells how many tokens to process at a time.
    """

    async def work(slot: Slot) -> None:
        if await upgrade(slot, engine.n_ctx, chunk):
            logger.info("the device has read in full what was refined before")

    while True:
        await engine.queue.answered()
        try:
            await engine.queue.when_idle(work)
        except DeviceError as error:
            logger.warning("the device could not read in full what was refined before: %s", named(error))
        except Exception:
            # whatever it is, out of memory or a mistake of ours: answers do not need this work
            logger.exception("idle work failed as it should not")


async def upgrade(slot: Slot, n_ctx: int, chunk: Callable[[], int]) -> bool:
    """Replace a refined prompt in a slot's memory by the whole one; return whether there was one, and room.

    The caller has to hold the slot, which has room for `n_ctx` tokens. If this is cancelled, or fails, the memory
    is what it was before.

    Raises:
        DeviceError: llama.cpp returned an error.
    """
    memory = slot.memory
    whole = memory.whole()
    if memory.history is None or len(whole) > n_ctx:
        return False
    saved = await memory.save()
    if saved is None:
        return False
    done = False
    with memory.telling_of(saved):
        try:
            read = await memory.rewind(common_prefix(saved.ids, whole))
            while read < len(whole):
                batch = whole[read : read + chunk()]
                await slot.extend(batch)
                read += len(batch)
            done = True
        finally:
            if not done:
                with anyio.CancelScope(shield=True):
                    await memory.load(saved)
    return True
