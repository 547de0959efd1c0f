"""Gets the cells of one answer's prompt from the cloud, from back to front, and keeps them for the device."""

from __future__ import annotations

from collections import deque
from contextlib import aclosing, suppress
from functools import partial
from typing import TYPE_CHECKING

import anyio
import anyio.lowlevel
import anyio.to_thread

from pdd_core.errors import CloudError, CloudRefused, InvalidCells, SchemaVersionError, named
from pdd_core.handoff import KV_HANDOVER
from pdd_core.kv.geometry import NoKV
from pdd_llamacpp_adapter.cloud.cloud_gate import shown
from pdd_llamacpp_adapter.session.cells_check import CHECKED_CELLS

if TYPE_CHECKING:
    from anyio.abc import TaskGroup

    from pdd_core.handoff import CloudInfo
    from pdd_core.kv.frames import Frame
    from pdd_core.kv.geometry import KVGeometry
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
    from pdd_llamacpp_adapter.engine.kv.kv_support import KVSupport
    from pdd_llamacpp_adapter.session.cells import Cells
    from pdd_llamacpp_adapter.session.cells_check import CellsChecks
    from pdd_llamacpp_adapter.session.live_answer import LiveAnswer

RESUMES = 4
"""How often a stream that was cut, corrupt or silent is asked for again from where it was, in one answer."""
_RESUME_S = 0.1
"""Before the first of these; doubled for each one after it."""
_LEAST_WAITING = 2
"""Pieces that may wait for the device, however large they are."""
_MOST_WAITING_BYTES = 64 * 2**20
"""Of pieces that wait for the device, unpacked."""
_DUE_S = 1.0
"""After the cloud was asked, until its first cells are late."""
_FINAL = frozenset({400, 401, 403, 404, 405, 409, 410})
"""HTTP statuses after which asking again is of no use."""
REFINED = "refined"
"""Reason where a refined prompt, which has its tokens at other positions, takes the place of cells."""
_NONE = 409
"""HTTP status where there are no cells: the state of the handoff says why."""


class CellsFetch:
    """One answer's cells: what is asked for, and what came.

    Args:
        live: the answer.
        support: what the device's cells look like.
        checks: which clouds have been compared with the device.
        silence_s: seconds without a byte after which a stream counts as lost.
    """

    def __init__(self, live: LiveAnswer, support: KVSupport, checks: CellsChecks, *, silence_s: float) -> None:
        self.reason: str | None = None
        """Why no cells come, or no further ones: see `KVReport.reason`."""
        self.geometry: KVGeometry | None = None
        """The agreed one; None before the cloud was asked."""
        self.front: int | None = None
        """Where the device's own reading of the prompt ends, once its batch is done; None before it begins."""
        self.sample: Cells | None = None
        """The prompt's first cells, to compare with the device's; None where that was done, or has to wait."""
        self.coming = False
        """Cells are asked for, or on their way."""
        self.bytes = 0
        """Received."""
        self.seconds = 0.0
        """From each stream's first byte to its last one."""
        self._live = live
        self._support = support
        self._checks = checks
        self._silence_s = silence_s
        self._cloud = ""
        self._scope = anyio.CancelScope()
        self._back = len(live.answer.prompt) - 1
        self._last_at: float | None = None
        """When the latest bytes of the stream came that is open; None before its first."""
        self._asked_at: float | None = None
        self._came: deque[Cells] = deque()
        self._sampled = False
        self._stopped = False

    @property
    def came(self) -> bool:
        """Cells wait for the device."""
        return bool(self._came)

    @property
    def checked(self) -> bool:
        """Cloud and device were compared, and alike."""
        return self.geometry is not None and self._checks.passed(self._cloud, self.geometry) is True

    @property
    def rate(self) -> float | None:
        """Cells per second so far; None while it is not known, or none come."""
        if self.geometry is None or self._last_at is None or not self.coming:
            return None
        elapsed = self.seconds + self._live.now() - self._last_at
        return self.bytes / self.geometry.cell_bytes / elapsed if elapsed > 0 else None

    @property
    def due(self) -> bool:
        """Cells are on their way, none has come, and none is late."""
        if self.reason is not None or self._stopped or self._asked_at is None:
            return False
        return self._last_at is None and self._live.now() < self._asked_at + _DUE_S

    def agree(self, info: CloudInfo, cloud: CloudClient) -> bool:
        """Return whether `cloud`, which has told `info`, has cells for this device; if not, that is the reason."""
        geometry = info.kv if KV_HANDOVER in info.features else None
        self._cloud = cloud.url
        if self.reason is not None:
            return False
        match geometry:
            case None:
                self.give_up("not_enabled", "the cloud does not know how to hand them over")
            case NoKV() as none:
                self.give_up(none.reason, shown(none.message))
            case _ if (problem := self._support.differs_from(geometry)) is not None:
                self.give_up("unsupported" if self._support.shape is None else "differs", problem)
            case _ if self._checks.passed(self._cloud, geometry) is False:
                self.give_up("differs", "the cloud's cells were compared before, and are not the device's")
            case _:
                self.geometry = geometry
                if self._back - self._floor(0) <= 0:
                    self.give_up("too_short", "the prompt is too short to compare the two first")
        return self.reason is None

    def start(self, tasks: TaskGroup, cloud: CloudClient, handoff_id: str) -> None:
        """Begin to fetch once the device reads: the cloud has sent a token. Never raises a cloud's error."""
        if self.reason is None and not self.coming and not self._stopped:
            self.coming, self._asked_at = True, self._live.now()
            tasks.start_soon(self._run, cloud, handoff_id)

    def stop(self) -> None:
        """Close the connection: the device needs no further cells."""
        self._stopped, self.coming, self.sample = True, False, None
        self._came.clear()
        self._scope.cancel()

    def take(self) -> Cells | None:
        """Return the next piece towards the front, if there is one."""
        if not self._came:
            return None
        cells = self._came.popleft()
        self._live.changed()  # there is room for another one
        return cells

    def compared(self, similarity: float) -> bool:
        """Record how similar the sample and the device's own cells are; return whether that is enough."""
        self.sample = None
        return self.geometry is not None and self._checks.compared(self._cloud, self.geometry, similarity)

    def give_up(self, reason: str, message: str) -> None:
        """Do without further cells. The first reason counts."""
        if self.reason is not None:
            return
        self.reason = reason
        more = " further" if self._back < len(self._live.answer.prompt) - 1 else ""
        if not self._live.answer.finished:
            self._live.decided(f"the device takes no{more} cells of the cloud's KV cache: {message}")

    async def _run(self, cloud: CloudClient, handoff_id: str) -> None:
        try:
            with self._scope:
                await self._live.until(lambda: self.front is not None)
                await self._receive(cloud, handoff_id)
        finally:
            self.coming = False
            self._live.changed()

    async def _receive(self, cloud: CloudClient, handoff_id: str) -> None:
        """Fetch until the pieces meet the device's front, however often the stream has to be resumed."""
        resumed = 0
        while (asked := self._next_range()) is not None:
            try:
                await self._stream(cloud, handoff_id, *asked)
            except (CloudError, InvalidCells) as error:
                final = isinstance(error, CloudRefused) and error.status in _FINAL
                if final or resumed >= RESUMES:
                    await self._lost(error, cloud, handoff_id)
                    return
                self._live.decided(f"the cells are asked for again from {asked[1]} on: {named(error)}")
                await anyio.sleep(_RESUME_S * 2**resumed)
                resumed += 1

    async def _lost(self, error: CloudError | InvalidCells, cloud: CloudClient, handoff_id: str) -> None:
        reason = "invalid" if isinstance(error, InvalidCells) else "unavailable"
        if isinstance(error, CloudRefused) and error.status == _NONE:
            with suppress(CloudError, SchemaVersionError), anyio.move_on_after(self._silence_s):
                state = await cloud.handoff(handoff_id)
                reason = state.kv.reason if isinstance(state.kv, NoKV) else reason
        self.give_up(reason, named(error))

    def _next_range(self) -> tuple[int, int] | None:
        if self._sampling:
            return 0, CHECKED_CELLS
        floor = self._floor(self.front or 0)
        return (floor, self._back) if floor < self._back else None

    @property
    def _sampling(self) -> bool:
        return not self.checked and not self._sampled

    def _floor(self, front: int) -> int:
        """Return the first position to ask for: the device computes those cells itself that it is compared by."""
        return front if self.checked else max(front, CHECKED_CELLS)

    async def _stream(self, cloud: CloudClient, handoff_id: str, start: int, end: int) -> None:
        geometry = self.geometry
        if geometry is None:
            return
        self._last_at, sampling = None, self._sampling
        frames = cloud.cells(
            handoff_id, start, end, geometry, silence_s=self._silence_s, on_bytes=self._received_bytes
        )
        from pdd_llamacpp_adapter.session.cells import unpacked  # needs numpy

        parts: list[Frame] = []
        async with aclosing(frames) as coming:
            async for frame in coming:
                parts.append(frame)
                if len(parts) < len(geometry.parts):
                    continue
                cells = await anyio.to_thread.run_sync(unpacked, parts, geometry)
                await anyio.lowlevel.checkpoint()  # the thread is waited for also when this is stopped meanwhile
                parts = []
                if sampling:
                    self._sampled, self.sample = True, cells
                    self._live.changed()
                    return
                await self._live.until(partial(self._has_room, cells))
                self._back = cells.start
                self._came.append(cells)
                self._live.changed()
                if self._back <= (self.front or 0):
                    return
        if self._back > start:
            raise InvalidCells(f"the stream ended with the cells from {self._back} on, and not from {start} on")

    def _has_room(self, cells: Cells) -> bool:
        waiting = len(self._came)
        return waiting < _LEAST_WAITING or (waiting + 1) * cells.keys.nbytes * 2 <= _MOST_WAITING_BYTES

    def _received_bytes(self, count: int) -> None:
        now = self._live.now()
        if self._last_at is not None:
            self.seconds += now - self._last_at
        self._last_at = now
        self.bytes += count
