"""What the device reads, over time: the prompt, then a refined one, and the whole one again if that fails."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pdd_core.errors import ContextOverflow
from pdd_llamacpp_adapter.engine.history import RefinedHistory
from pdd_llamacpp_adapter.session.judging import GuardVerdict

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.session.batches import Batches
    from pdd_llamacpp_adapter.session.judging import Judging
    from pdd_llamacpp_adapter.session.live_answer import LiveAnswer
    from pdd_llamacpp_adapter.session.refined_prompt_wish import RefinedPromptWish

_VERDICTS = {
    GuardVerdict.AGREED: "the guard agreed",
    GuardVerdict.TOO_FEW: "the guard had too few tokens to judge by",
}


class RefinedCourse:
    """Keeps one answer's `Reading` and the engine's memory in step.

    `refining` None: nothing was asked for. `behind_refined` allows a refined history, for which the cloud is asked
    for likelihoods; without these nobody could tell whether it lost something.
    """

    def __init__(
        self,
        batches: Batches,
        live: LiveAnswer,
        judging: Judging,
        refining: RefinedPromptWish | None,
        *,
        behind_refined: bool,
    ) -> None:
        self._batches = batches
        self._live = live
        self._reading = live.answer.reading
        self._judging = judging
        self._refining = refining
        self._behind_refined = behind_refined
        self._taken = False
        self._remembered: int | None = None
        self.saved = 0
        """Prompt tokens that need not be processed, thanks to this answer's refined prompt."""
        self.too_late = False
        """The refined prompt came when there was nothing left to save."""

    async def start(self) -> int:
        """Begin behind what the engine holds; return how many prompt tokens that stands for."""
        covered = await self._batches.start(self._reading.prompt, refined=self._behind_refined)
        history = self._batches.engine.history
        self._reading.resume(covered, history)
        if history is not None:
            self._remembered = len(self._reading.ids)
            what = f"{len(history.ids)} tokens that stand for {len(history.prompt)}"
            self._live.decided(f"the device goes on behind a refined history: {what}")
        return covered

    @property
    def is_judged(self) -> bool:
        """A refined prompt is read, or was asked for."""
        return self._refining is not None or self._reading.refined

    @property
    def is_news(self) -> bool:
        """A refined prompt has come, and nothing was done about it."""
        return self._refining is not None and self._refining.kept is not None and not self._taken

    def readable(self) -> int:
        """Return how many tokens there are to process now.

        A prompt that fits the context only once it is refined waits for that, but for what is sure to stay behind
        what was read.

        Raises:
            ContextOverflow: it will not be refined, or not enough.
        """
        if self._fits():
            return self._live.answer.behind
        refining = self._refining
        if refining is None or not (refining.may_come or self.is_news):
            raise ContextOverflow("the prompt does not fit the device's context, and no refined one does")
        covered = self._reading.covered
        if self._reading.processed + refining.protected_from(covered) + self._live.answer.max_tokens > self._n_ctx:
            return 0  # what was read will have to go
        return refining.certain(covered) - covered

    @property
    def expected(self) -> int:
        """Tokens left to process, if the refined prompt that may yet come is as long as it was asked to be."""
        behind, refining = self._live.answer.behind, self._refining
        if refining is None or self._reading.prompt_done or not (refining.may_come or self.is_news):
            return behind
        covered = self._reading.covered
        rest = len(self._reading.prompt) - covered
        kept = max(math.ceil(refining.ratio * rest), refining.protected_from(covered))
        return behind - max(0, rest - kept)

    async def settle(self) -> bool:
        """Act on what is new; return whether the engine had to drop something that it had processed.

        Raises:
            ContextOverflow: the whole prompt would be needed, and does not fit.
        """
        self._judging.catch_up()
        if self._reading.refined and self._judging.lost():
            return await self._give_up_refined()
        if not self.is_news or self._refining is None or self._refining.kept is None:
            return False
        self._taken = True
        return await self._take(self._refining.kept)

    async def _take(self, kept: tuple[int, ...]) -> bool:
        whole = self._live.answer.behind
        if not self._reading.refine(kept) and self._fits():
            self.too_late = True
            self._live.decided("the refined prompt came too late to save anything")
            return False
        dropped = not self._fits()
        if dropped:  # what was read before takes the room
            await self._rewind(self._reading.reread(kept))
        self.saved = max(0, whole - self._live.answer.behind)
        place = ", in place of what it held" if dropped else ""
        self._live.decided(f"the device reads the refined prompt{place}: {self.saved} tokens less to process")
        self._live.changed()
        return dropped

    async def _give_up_refined(self) -> bool:
        length, self.saved = self._reading.restore(), 0
        back = ": back to the full prompt" if self._fits() else ""
        self._live.decided(f"the guard disagreed: {self._judging}{back}")
        await self._rewind(length)  # in any case: what was read is of no use to another answer either
        if not self._fits():
            raise ContextOverflow("the refined prompt will not do, and the full one does not fit the context")
        self._live.changed()
        return True

    async def _rewind(self, length: int) -> None:
        self._reading.processed = await self._batches.rewind(length)

    def remember(self) -> None:
        """Tell the engine, once the prompt is read, what it holds in place of which."""
        reading = self._reading
        if reading.refined and reading.prompt_done and self._remembered != len(reading.ids):
            self._remembered = len(reading.ids)
            self._batches.engine.memory.remember(RefinedHistory(tuple(reading.ids), reading.prompt))

    def took_over(self) -> None:
        """Take note of the verdict, which is final."""
        if self._refining is not None:
            self._refining.none("too_late", "the device was ready first")
        self._judging.agreed()
        if self._judging.verdict in _VERDICTS:
            self._live.decided(f"{_VERDICTS[self._judging.verdict]}: {self._judging}")

    def _fits(self) -> bool:
        return len(self._reading.ids) + self._live.answer.max_tokens <= self._n_ctx

    @property
    def _n_ctx(self) -> int:
        return self._batches.engine.n_ctx
