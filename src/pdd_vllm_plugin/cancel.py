"""Stopping the cloud's part of a request, with the engine's word for it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio

from pdd_core.errors import EngineNotAddressable
from pdd_core.handoff import Status
from pdd_vllm_plugin.compat import ask_engine

if TYPE_CHECKING:
    from pdd_vllm_plugin.handoff_record import HandoffRecord

ENDED_BY_ENGINE = frozenset({Status.HANDED_OFF, Status.FINISHED})
"""Of these, no further token is made, and no engine need be asked."""


async def cancel(engine_client: Any, record: HandoffRecord, timeout: float) -> bool:
    """Stop `record`'s request. Returns True once the engine has confirmed that no further token is made for it.

    Raises:
        EngineDeadError: the engine is gone (vllm.v1.engine.exceptions).
    """
    if record.status in ENDED_BY_ENGINE:
        return True
    # If vLLM has not begun the request, there is nothing to abort yet: the recorder looks at this flag.
    record.cancelled = True
    if record.status is Status.RUNNING:
        # The outside form of the id; returns at once, before the engine has acted.
        await engine_client.abort(record.engine_request_id)
        record.end("abort")
    return await confirm(engine_client, timeout, record.engine)


async def confirm(engine_client: Any, timeout: float, rank: int | None = None) -> bool:
    """Wait until the engine has handled everything sent before now; False if that takes over `timeout` seconds.

    ``is_paused`` is a call to the engine that changes nothing and waits its turn in the same queue as the abort.
    The engine answers between steps, so this takes as long as the rest of the running step.

    Args:
        engine_client: vLLM's.
        timeout: seconds.
        rank: the engine that has the request. Where it is not known, each engine is waited for.
    """
    with anyio.move_on_after(timeout):
        try:
            await ask_engine(engine_client, rank, "is_scheduler_paused")
        except EngineNotAddressable:
            await engine_client.is_paused()
        return True
    return False
