"""Has the device read the prompt, then what the cloud has in its place, and all of it again if that fails.

That is a refined prompt, or the cloud's cells of the prompt's end: never both in one answer.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pdd_core.errors import ContextOverflow
from pdd_llamacpp_adapter.engine.history import RefinedHistory
from pdd_llamacpp_adapter.session.cells_reader import CellsReader
from pdd_llamacpp_adapter.session.judging import GuardVerdict
from pdd_llamacpp_adapter.session.outcome import RefinementReport

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.session.batches import Batches
    from pdd_llamacpp_adapter.session.outcome import KVReport
    from pdd_llamacpp_adapter.session.session_setup import SessionSetup

_VERDICTS = {
    GuardVerdict.AGREED: "the guard agreed",
    GuardVerdict.TOO_FEW: "the guard had too few tokens to judge by",
}


class PromptReader:
    """Keeps one answer's `Reading` and the engine's memory in step."""

    def __init__(self, setup: SessionSetup, batches: Batches) -> None:
        self._batches = batches
        self._live = setup.live
        self._reading = setup.live.answer.reading
        self._judging = setup.judging
        self._fetch = setup.fetch
        self._reuse_refined = setup.reuse_refined
        self._cells = CellsReader(setup, batches)
        self._taken = False
        self._remembered: int | None = None
        self._saved = 0
        """Prompt tokens that need not be processed, thanks to this answer's refined prompt."""
        self._too_late = False
        """The refined prompt came when there was nothing left to save."""

    async def start(self) -> int:
        """Begin behind what the engine holds already; return how many tokens of the prompt that saves."""
        position = await self._batches.start(self._reading.prompt, refined=self._reuse_refined)
        history = self._batches.slot.history
        self._reading.resume(position, history)
        if history is not None:
            self._remembered = len(self._reading.ids)
            what = f"{len(history.ids)} tokens that stand for {len(history.prompt)}"
            self._live.decided(f"the device goes on behind a refined history: {what}")
        self._cells.begin()
        return position

    @property
    def may_be_refined(self) -> bool:
        """A refined prompt is read, or was asked for."""
        return self._fetch is not None or self._reading.refined

    @property
    def may_be_judged(self) -> bool:
        """A refined prompt is read, or cells of the cloud's, or either was asked for."""
        return self.may_be_refined or self._cells.asked

    @property
    def has_news(self) -> bool:
        """A refined prompt has come that is not used yet, or cells have."""
        return self._refined_prompt_waits or self._cells.have_news

    @property
    def may_change(self) -> bool:
        """A refined prompt may yet come, or cells, in the place of what is left to read."""
        return self._cells.asked or (self._fetch is not None and self._fetch.may_come)

    @property
    def _refined_prompt_waits(self) -> bool:
        return self._fetch is not None and self._fetch.kept is not None and not self._taken

    def readable(self) -> int:
        """Return how many tokens there are to process now.

        A prompt that fits the context only once it is refined waits for that, but for the protected tokens right
        behind what was read.

        Raises:
            ContextOverflow: it will not be refined, or not enough.
        """
        if self._fits():
            return self._reading.readable(len(self._live.answer))
        fetch = self._fetch
        if fetch is None or not (fetch.may_come or self._refined_prompt_waits):
            raise ContextOverflow("the prompt does not fit the device's context, and no refined one does")
        position = self._reading.prompt_position
        if self._reading.processed + fetch.protected_from(position) + self._live.answer.max_tokens > self._n_ctx:
            return 0  # what was read will have to go
        return fetch.protected_until(position) - position

    @property
    def expected_left(self) -> int:
        """Tokens left to process, if what may yet come of the cloud's does: cells, or a refined prompt.

        Cells go on to come as fast as they did, and a refined prompt is as long as it was asked to be.
        """
        behind, fetch = self._live.answer.behind - self._cells.expected, self._fetch
        if fetch is None or self._reading.prompt_done or not (fetch.may_come or self._refined_prompt_waits):
            return behind
        position = self._reading.prompt_position
        rest = len(self._reading.prompt) - position
        kept = max(math.ceil(fetch.ratio * rest), fetch.protected_from(position))
        return behind - max(0, rest - kept)

    async def update(self) -> bool:
        """Act on what is new; return whether the engine had to drop something that it had processed.

        Raises:
            ContextOverflow: the whole prompt would be needed, and does not fit.
        """
        self._judging.catch_up()
        if self._reading.refined and self._judging.lost():
            return await self._give_up_refined()
        if await self._cells.update():
            return True
        if not self._refined_prompt_waits or self._fetch is None or self._fetch.kept is None:
            return False
        self._taken = True
        return await self._take(self._fetch.kept)

    async def _take(self, kept: tuple[int, ...]) -> bool:
        whole = self._live.answer.behind
        if not self._reading.refine(kept) and self._fits():
            self._too_late = True
            self._live.decided("the refined prompt came too late to save anything")
            return False
        dropped = not self._fits()
        if dropped:  # what was read before takes the room
            await self._rewind(self._reading.reread(kept))
        self._saved = max(0, whole - self._live.answer.behind)
        place = ", in place of what it held" if dropped else ""
        self._live.decided(f"the device reads the refined prompt{place}: {self._saved} tokens less to process")
        self._live.changed()
        return dropped

    async def _give_up_refined(self) -> bool:
        length, self._saved = self._reading.restore(), 0
        back = ": back to the full prompt" if self._fits() else ""
        self._live.decided(f"the guard disagreed: {self._judging}{back}")
        await self._rewind(length)  # in any case: what was read is of no use to another answer either
        if not self._fits():
            raise ContextOverflow("the refined prompt will not do, and the full one does not fit the context")
        self._live.changed()
        return True

    async def _rewind(self, length: int) -> None:
        self._reading.processed = await self._batches.rewind(length)

    def next_chunk(self, limit: int) -> int:
        """Return how many tokens to process next, at most `limit`."""
        chunk = self._cells.next_chunk(min(limit, self.readable()))
        self._cells.reads_to(self._reading.processed + chunk)
        return chunk

    def end(self) -> None:
        """Ask for nothing more: the device does nothing more for this answer."""
        self._cells.end()

    def remember(self) -> None:
        """Tell the engine, once a refined prompt is read, which prompt it holds in that form."""
        reading = self._reading
        if reading.refined and reading.prompt_done and self._remembered != len(reading.ids):
            self._remembered = len(reading.ids)
            self._batches.slot.memory.remember(RefinedHistory(tuple(reading.ids), reading.prompt))

    def took_over(self) -> None:
        """Record the guard's verdict, which is final."""
        if self._fetch is not None:
            self._fetch.give_up("too_late", "the device was ready first")
        self._cells.took_over()
        self._judging.agreed()
        if self._judging.verdict in _VERDICTS:
            self._live.decided(f"{_VERDICTS[self._judging.verdict]}: {self._judging}")

    def report(self) -> RefinementReport | None:
        """Return what became of the refined prompt; None where none was asked for, and none read."""
        judging, fetch = self._judging, self._fetch
        if not self.may_be_refined and (self._cells.wished or not judging.judged):
            return None
        kept = None if fetch is None else fetch.kept
        reason = None if fetch is None else fetch.reason
        return RefinementReport(
            ratio=None if fetch is None else fetch.ratio,
            kept_tokens=None if kept is None else len(kept),
            saved_tokens=self._saved,
            guard=None if judging.verdict is None else judging.verdict.value,
            guard_excess=judging.excess,
            guard_tokens=judging.judged,
            reason="too_late" if self._too_late else reason,
        )

    def kv_report(self) -> KVReport | None:
        """Return what became of the cloud's cells; None where none were asked for."""
        return self._cells.report()

    def _fits(self) -> bool:
        return len(self._reading.ids) + self._live.answer.max_tokens <= self._n_ctx

    @property
    def _n_ctx(self) -> int:
        return self._batches.engine.n_ctx
