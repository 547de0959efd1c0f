"""The device's part of one answer: prefill, catch up with the cloud, take over, and finish."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudLost, DeviceEngineFailed, DeviceError, named
from pdd_core.planner.types import CLOSING_MARGIN
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.engine.device_profile import Throttle
from pdd_llamacpp_adapter.session.batches import Batches
from pdd_llamacpp_adapter.session.decoding import decode
from pdd_llamacpp_adapter.session.grammar_following import GrammarFollower
from pdd_llamacpp_adapter.session.prompt_reader import PromptReader
from pdd_llamacpp_adapter.session.standby import Standby

if TYPE_CHECKING:
    import numpy as np

    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
    from pdd_llamacpp_adapter.engine.speed import Work
    from pdd_llamacpp_adapter.session.session_setup import SessionSetup

logger = logging.getLogger(__name__)

LAST_LAP = 16
"""Tokens that one small batch absorbs."""


class DevicePart:
    """Brings llama.cpp level with the answer, then makes the rest of it.

    Where the cloud makes the answer alone, it is on standby until the cloud is lost or silent.
    """

    def __init__(self, setup: SessionSetup, engine: DeviceEngine) -> None:
        live, options = setup.live, setup.options
        self._engine = engine
        self._request = setup.request
        self._live = live
        self._speed = options.speed
        self._patience = options.patience
        self._rate = options.rate
        self._on_progress = options.on_progress
        self._judging = setup.judging
        throttle = Throttle(options.profile, live.now)
        self._batches = Batches(engine, live, throttle=throttle, speed=options.speed)
        self._grammar = GrammarFollower(setup.matcher, live.answer, size=engine.vocab.size)
        self.reader = PromptReader(setup, self._batches)
        self._scope = anyio.CancelScope()
        self._at_work = False
        self._begun_at = 0
        self._standby = Standby(setup)
        self.reused: int | None = None
        """Prompt tokens that were in the context already; None before the device has begun."""

    async def run(self) -> None:
        """Work until the answer is finished or the device fails. Never raises a device's error."""
        try:
            with self._scope:
                while self._live.answer.owner is Source.CLOUD:
                    await self._standby.over()
                    async with self._engine.exclusive(self._request.prompt_token_ids) as self._batches.slot:
                        if (logits := await self._catch_up()) is not None:
                            await self._decode(logits)
        except DeviceError as error:
            self._lost(error)
        except Exception as error:
            # whatever it is, out of memory or a mistake of ours: a cloud can go on
            logger.exception("the device failed as it should not")
            self._lost(DeviceEngineFailed(f"the device failed: {type(error).__name__}"))
        finally:
            self._batches.waits_since = None
            self.reader.end()
        self._live.changed()

    def wake(self) -> None:
        """Begin, if it is on standby."""
        self._standby.end()
        self._live.changed()

    async def watch(self) -> None:
        """Give the device up when llama.cpp does not come back in time.

        The answer does not wait for its thread, which cannot be stopped in every place: the cloud goes on at once.
        """
        limit = self._patience.device_step_s
        await self._batches.hung(limit)
        self._lost(DeviceEngineFailed(f"llama.cpp did not come back within {limit:g} s"))
        self._live.changed()
        self.stop()

    def _lost(self, error: DeviceError) -> None:
        self._live.decided(f"the device was lost: {named(error)}")
        self._live.answer.device_failed(error)

    def stop(self) -> None:
        """Abort what the engine is doing: the answer is complete."""
        self._scope.cancel()

    @property
    def needed(self) -> bool:
        """Whether the device is at work for this answer, or waits to be."""
        answer = self._live.answer
        return answer.device_able and not answer.finished and not self._standby.cloud_speaks

    @property
    def work(self) -> Work:
        """What the engine did."""
        return self._batches.work

    def ready_in(self) -> float | None:
        """Return the seconds until catch-up by the speed so far; 0 after it, None while it cannot be said."""
        answer = self._live.answer
        if answer.owner is Source.DEVICE:
            return 0.0
        if not answer.device_able or not self._at_work:
            return None
        return self._speed.seconds(self.reader.expected_left)

    async def _catch_up(self) -> np.ndarray | None:
        """Process prompt and received tokens until the answer is the device's; return the logits to go on from.

        None: the device is in reserve, and the cloud goes on.
        """
        answer = self._live.answer
        if self._standby.cloud_speaks:  # while others had the engine
            return None
        held = await self.reader.start()
        self.reused = held if self.reused is None else self.reused
        self._begun_at, self._at_work = answer.processed, True
        logits: np.ndarray | None = None
        while not self._standby.cloud_speaks:
            # the guard may want to know what the grammar lets come
            self._grammar.follow(self._judging.allow if self.reader.may_be_judged else None)
            if await self.reader.update():
                logits = None
            if self.reader.readable():
                self._close_cloud_in_time()
                # What came in while one chunk was processed is the next: far behind, chunks grow by themselves.
                logits = await self._process(
                    self.reader.next_chunk(self._batches.chunk(may_change=self.reader.may_change))
                )
                self._live.changed()
            elif logits is not None and self._may_take_over() and answer.take_over():
                self.reader.took_over()
                self._live.decided("the device took over")
                self._live.changed()
                return logits
            else:
                await self._wait_for_work()
        self._at_work = False
        return None

    def _may_take_over(self) -> bool:
        return self._standby.step_in() and not self._waits_for_verdict()

    def _waits_for_verdict(self) -> bool:
        """Whether the cloud may yet send tokens that tell if a refined prompt, or its cells, will do."""
        return self._live.answer.cloud_running and self._judging.lacks()

    def _close_cloud_in_time(self) -> None:
        """Take no more from the cloud once what is at hand lasts until the device is ready.

        Its budget has head-room for a device that turns out slow; a device that does not needs none of it. And one
        that has all but caught up would chase a cloud that outruns its steps to the end of the budget.
        """
        answer, reading = self._live.answer, self._live.answer.reading
        if self._standby.in_reserve:
            return
        last_lap = reading.prompt_done and answer.behind <= LAST_LAP
        # with more to do the forecast has to hold for longer: it must be the device's own, of half of its work
        begun_well = reading.processed - self._begun_at >= answer.behind
        if not (answer.cloud_running and (last_lap or begun_well)) or self._judging.lacks(answer.behind):
            return
        needs = self._speed.seconds(answer.behind)
        if needs is None:
            return
        if last_lap and needs < self._live.buffered / self._rate:
            self._close_cloud("the device has all but caught up")
        elif needs * (1.0 + CLOSING_MARGIN) < self._live.buffered / self._rate:
            self._close_cloud("what is at hand lasts until the device is ready")

    def _close_cloud(self, why: str) -> None:
        self._live.answer.cloud_closed()
        self._live.decided(f"the cloud was closed: {why}")
        self._live.changed()

    async def _wait_for_work(self) -> None:
        """Return when the answer may be taken over, or has grown. A cloud that stays silent is given up."""
        answer, limit = self._live.answer, self._patience.first_token_s
        if self._standby.in_reserve:
            await self._live.next_change(within=self._standby.left)
            return

        def is_there() -> bool:
            may_take_over = answer.may_take_over and not self._waits_for_verdict()
            return may_take_over or self.reader.readable() > 0 or self.reader.has_news

        with anyio.move_on_after(limit) as patience:
            await self._live.until(is_there)
        if patience.cancelled_caught and answer.caught_up and not len(answer):
            answer.cloud_lost(CloudLost(f"no first token {limit:g} s after the device was ready"))
            self._live.changed()

    async def _decode(self, logits: np.ndarray) -> None:
        from pdd_llamacpp_adapter.engine.bad_words import bad_word_ids
        from pdd_llamacpp_adapter.engine.sampler import Sampler

        answer = self._live.answer
        sampler = Sampler(
            self._request,
            stop_ids=answer.stop_ids,
            output=answer.ids,
            matcher=self._grammar.matcher,
            bad_words=bad_word_ids(self._request.bad_words, self._engine.vocab),
        )
        await decode(logits, sampler, batches=self._batches, live=self._live)

    async def _process(self, limit: int) -> np.ndarray | None:
        """Process the next tokens, at most `limit`; return the logits if they are the last of what there is."""
        answer = self._live.answer
        ids = answer.pending(limit)
        following = self._judging.following(len(ids))
        likelihoods, logits = await self._batches.process(
            ids, want_logits=len(ids) == answer.behind, following=following
        )
        self._judging.processed(following, likelihoods, behind=logits)
        answer.device_processed(len(ids))
        self.reader.remember()
        if answer.owner is Source.CLOUD:
            self._report(answer.processed - len(ids))
        return logits

    def _report(self, before: int) -> None:
        if self._on_progress is None:
            return
        answer, prompt = self._live.answer, len(self._live.answer.reading.ids)
        if before < prompt:
            self._on_progress(min(answer.processed, prompt), prompt, "prefill")
        else:
            self._on_progress(answer.processed, answer.processed + answer.behind, "catch_up")
