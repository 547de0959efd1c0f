"""Puts the cloud's cells in the place of what the device has not read of a prompt, between two of its batches.

The device reads on from the front while pieces come from the back, and takes the cells where both meet. It never
waits for the link: whatever does not come in time, it reads itself.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pdd_core.errors import DeviceEngineFailed, InvalidCells, named
from pdd_llamacpp_adapter.session.cells_check import CHECKED_CELLS
from pdd_llamacpp_adapter.session.cells_fetch import REFINED
from pdd_llamacpp_adapter.session.outcome import KVReport

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.session.batches import Batches
    from pdd_llamacpp_adapter.session.cells import Cells
    from pdd_llamacpp_adapter.session.session_setup import SessionSetup

_LEAST_CHUNK = 16
"""Tokens of a batch near the meeting: smaller ones cost as much."""
_MOST_CHUNK = 64
"""Tokens of a batch while nobody knows when both meet: in the middle of one, the device cannot take cells in."""


class CellsReader:
    """Keeps one answer's cells, its `Reading` and the engine's memory in step. Without cells it does nothing."""

    def __init__(self, setup: SessionSetup, batches: Batches) -> None:
        self._batches = batches
        self._live = setup.live
        self._reading = setup.live.answer.reading
        self._judging = setup.judging
        self._fetch = setup.cells
        self._speed = setup.options.speed
        self._begun_at = 0
        self._joined = 0
        """Cells that the device has at last."""
        self._prefilled = 0

    @property
    def asked(self) -> bool:
        """Cells have come, or may come."""
        return self._fetch is not None and (self._fetch.reason is None or self._reading.back is not None)

    @property
    def wished(self) -> bool:
        """The answer asks for cells, and not for a refined prompt as well."""
        return self._fetch is not None and self._fetch.reason != REFINED

    @property
    def have_news(self) -> bool:
        """Something has come that is not used yet."""
        return self._fetch is not None and self._reading.joined is None and self._fetch.came

    def begin(self) -> None:
        """Have the cells fetched that the device does not hold: it begins to read."""
        if self._fetch is not None:
            self._begun_at = self._fetch.front = self._reading.processed
            self._live.changed()

    def next_chunk(self, limit: int) -> int:
        """Return how many tokens to process next, at most `limit`: none of those whose cells are about to come."""
        meets_in = self._meets_in()
        if meets_in is None:
            return min(limit, _MOST_CHUNK) if self._may_come else limit
        return min(limit, max(_LEAST_CHUNK, math.floor(meets_in)))

    def reads_to(self, position: int) -> None:
        """Note where the device's reading will end after the batch that is about to begin."""
        if self._fetch is not None and self._reading.joined is None:
            self._fetch.front = position

    @property
    def expected(self) -> int:
        """Tokens that need not be processed if cells go on to come as they do, besides those that have come.

        Before the first of them is due, all will come in time: a plan with cells counts on that.
        """
        meets_in = self._meets_in()
        if meets_in is None:
            return self._reading.before_cells if self._fetch is not None and self._fetch.due else 0
        return self._reading.before_cells - math.ceil(meets_in)

    @property
    def _may_come(self) -> bool:
        return self._fetch is not None and self._fetch.reason is None and self._reading.joined is None

    def _meets_in(self) -> float | None:
        """Return how many tokens the device will process until both meet; None while that cannot be said."""
        fetch, device = self._fetch, self._speed.prefill_tps
        if fetch is None or device is None or (cells := fetch.rate) is None:
            return None
        return self._reading.before_cells * device / (device + cells)

    async def update(self) -> bool:
        """Act on what is new; return whether the engine had to drop what logits may rest on."""
        fetch, reading = self._fetch, self._reading
        if fetch is None:
            return False
        if reading.joined is not None:
            return await self._judge()
        try:
            if fetch.sample is not None and reading.processed >= CHECKED_CELLS:
                await self._compare(fetch.sample)
            while (cells := fetch.take()) is not None:
                await self._add(cells)
            if reading.back is not None and reading.processed >= reading.back:
                await self._join()
            elif not reading.before_cells:
                fetch.give_up("too_late", "it has read the prompt itself")
                fetch.stop()
        except (InvalidCells, DeviceEngineFailed) as error:  # the engine holds what it held
            fetch.give_up("invalid", named(error))
            await self._drop()
        return False

    async def _compare(self, sample: Cells) -> None:
        similarity = await self._batches.compare_cells(sample.start, sample.keys, sample.values)
        if self._fetch is not None and not self._fetch.compared(similarity):
            self._fetch.give_up("differs", f"they are not the device's own (similarity {similarity:.3f})")
            await self._drop()

    async def _add(self, cells: Cells) -> None:
        reading = self._reading
        end = len(reading.ids) - 1 if reading.back is None else reading.back
        cells = cells.cut(reading.processed, end)
        if cells.start < cells.end:
            await self._batches.add_cells(cells.start, cells.keys, cells.values)
            reading.back = cells.start

    async def _join(self) -> None:
        reading = self._reading
        await self._batches.join_cells(reading.ids[:-1])
        self._prefilled = reading.processed - self._begun_at
        self._joined = reading.join()
        self._stop()
        took = f"the device took {self._joined:,} cells of the cloud's"
        self._live.decided(f"{took}, and prefilled {self._prefilled:,} tokens")
        self._live.changed()

    async def _judge(self) -> bool:
        if self._reading.back is None or not self._judging.lost():
            return False
        self._live.decided(f"the guard disagreed: {self._judging}: the device drops the cloud's cells")
        if self._fetch is not None:
            self._fetch.reason = "guard"
        await self._drop()
        return True

    async def _drop(self) -> None:
        """Go back to what the device has read itself."""
        self._stop()
        self._joined = self._prefilled = 0
        own = self._reading.without_cells()
        await self._batches.drop_cells()
        self._reading.processed = await self._batches.rewind(own)
        self._live.changed()

    def _stop(self) -> None:
        if self._fetch is not None:
            self._fetch.stop()

    def took_over(self) -> None:
        """Note that no cells are needed any more."""
        if self._fetch is not None and not self._joined:
            self._fetch.give_up("too_late", "it was ready first")
        self._stop()

    def end(self) -> None:
        """Close the connection, if one is open: the device does nothing more for this answer."""
        self._stop()

    def report(self) -> KVReport | None:
        """Return what became of the cells; None where none were asked for."""
        fetch, judging = self._fetch, self._judging
        if fetch is None:
            return None
        return KVReport(
            cells=self._joined,
            prefilled=self._prefilled,
            bytes=fetch.bytes,
            seconds=fetch.seconds,
            guard=None if judging.verdict is None or not self.wished else judging.verdict.value,
            guard_excess=judging.excess if self.wished else None,
            reason=None if self._joined else fetch.reason or "too_late",
        )
