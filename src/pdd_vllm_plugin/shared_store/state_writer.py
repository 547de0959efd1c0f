"""Writes ended states to the store, and removes deleted ones: one after another, behind the requests."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as Lost
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as Late

from pdd_vllm_plugin.cancel import ENDED_BY_ENGINE
from pdd_vllm_plugin.handoff_names import names_a_state
from pdd_vllm_plugin.shared_store import names
from pdd_vllm_plugin.shared_store.scripts import REMOVE, WRITE
from pdd_vllm_plugin.shared_store.stored_state import encode
from pdd_vllm_plugin.tombstones import MAX_TOMBSTONES, TOMBSTONE_TTL_S

if TYPE_CHECKING:
    from pdd_core.handoff import Status
    from pdd_vllm_plugin.config import PDDConfig
    from pdd_vllm_plugin.handoff_record import HandoffRecord
    from pdd_vllm_plugin.handoff_store import HandoffStore
    from pdd_vllm_plugin.shared_store.store_metrics import StoreMetrics

logger = logging.getLogger("vllm.pdd")
QUEUE_STATES = 256
"""States that wait to be written, and a quarter of `max_state_tokens` at most; more are dropped."""


@dataclass(frozen=True, slots=True)
class Removal:
    """One state that is to go."""

    handoff_id: str
    completion_id: str
    gone: str
    """What its tombstones say: 1 if the engine had ended the request itself, else 0; empty: there are none."""


def confirmed(status: Status) -> str:
    """Return what a tombstone says of a state: only what the engine has ended is known to make no token."""
    return str(int(status in ENDED_BY_ENGINE))


class StateWriter:
    """Used from the store's thread only."""

    def __init__(self, config: PDDConfig, store: HandoffStore, metrics: StoreMetrics) -> None:
        self._config = config
        self._store = store
        self._metrics = metrics
        self._states: dict[str, tuple[HandoffRecord, int]] = {}
        self._held = 0
        """The sum of their sizes as they were put: `HandoffRecord.size`."""
        self._removals: dict[str, Removal] = {}
        self._work = asyncio.Event()
        self._refused: set[str] = set()
        self.open = False
        """Whether the store answers. While it does not, states are dropped: they are not to pile up."""

    def put(self, record: HandoffRecord) -> None:
        """Have an ended record written, unless too many wait already."""
        handoff_id, size = record.opt_in.handoff_id, record.size
        if handoff_id in self._states:
            return  # it is not encoded yet: what has changed goes with it
        full = len(self._states) >= QUEUE_STATES or self._held + size > self._config.max_state_tokens // 4
        if not self.open or (full and self._states):
            self._metrics.dropped()
            return
        self._states[handoff_id] = record, size
        self._held += size
        self._work.set()

    def remove(self, removal: Removal) -> None:
        """Have a state removed, if it takes until the store is back. The oldest of thousands is given up."""
        if removal.handoff_id in self._states:
            self._take(removal.handoff_id)
        self._removals[removal.handoff_id] = removal
        if len(self._removals) > MAX_TOMBSTONES:
            del self._removals[next(iter(self._removals))]
        self._work.set()

    def drop_all(self) -> None:
        """Drop the states that wait."""
        self._metrics.dropped(len(self._states))
        self._states.clear()
        self._held = 0

    def _take(self, handoff_id: str) -> HandoffRecord:
        record, size = self._states.pop(handoff_id)
        self._held -= size
        return record

    async def run(self, client: Any) -> None:
        """Write and remove for as long as the store answers.

        Raises:
            redis.exceptions.ConnectionError, redis.exceptions.TimeoutError: it does not.
        """
        while True:
            await self._work.wait()
            self._work.clear()
            while self._removals or self._states:
                if self._removals:
                    removal = next(iter(self._removals.values()))
                    await self._kept_going(self.remove_now(client, removal))
                    if self._removals.get(removal.handoff_id) is removal:
                        del self._removals[removal.handoff_id]
                else:
                    await self._write_next(client)

    async def _write_next(self, client: Any) -> None:
        record = self._take(next(iter(self._states)))
        written = False
        try:
            written = await self._kept_going(self._write(client, record)) is True
        finally:
            (self._metrics.stored if written else self._metrics.dropped)()

    async def _write(self, client: Any, record: HandoffRecord) -> bool:
        left = self._store.expires_in(record)
        ttl, most = int(left * 1000), self._config.store_max_bytes
        value = encode(record, expires_in=left)
        if ttl < 1 or len(value) > most // 2:
            return False
        handoff_id, completion = record.opt_in.handoff_id, record.completion_id
        named = names_a_state(completion)
        await client.register_script(WRITE)(
            keys=[
                names.state_key(handoff_id), names.gone_key(handoff_id), names.INDEX, names.SIZES,
                names.completion_key(completion) if named else "",
            ],
            args=[
                names.digest(handoff_id), value, ttl, most, names.STATES,
                names.seal_handoff_id(completion, handoff_id),
            ],
        )  # fmt: skip
        return True

    async def remove_now(self, client: Any, removal: Removal) -> None:
        """Remove one state.

        Raises:
            redis.exceptions.RedisError: the store did not do it.
        """
        handoff_id, completion = removal.handoff_id, removal.completion_id
        ttl = min(TOMBSTONE_TTL_S, self._config.ttl_s)
        await client.register_script(REMOVE)(
            keys=[
                names.state_key(handoff_id), names.INDEX, names.SIZES, names.completion_key(completion),
                names.gone_key(handoff_id), names.gone_key(completion),
            ],
            args=[
                names.digest(handoff_id), names.seal_handoff_id(completion, handoff_id), removal.gone,
                int(ttl * 1000),
            ],
        )  # fmt: skip

    async def _kept_going(self, doing: Any) -> Any:
        """Await `doing`. What the store refuses (it is full, or read-only) is counted, and said once."""
        try:
            return await doing
        except (Lost, Late):
            raise
        except RedisError as error:
            self._metrics.error()
            reason = str(error).split(" ", 1)[0]
            if reason not in self._refused:
                self._refused.add(reason)
                logger.warning("pdd: the shared store refuses a command: %s", error)
            return None
