"""The device's part of one answer: prefill, catch up with the cloud, take over, and finish."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudLost, DeviceEngineFailed, DeviceError, GrammarRejected, named
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.engine import Choice

if TYPE_CHECKING:
    import numpy as np

    from pdd_core.patience import Patience
    from pdd_llamacpp_adapter.answer import Answer
    from pdd_llamacpp_adapter.engine import DeviceEngine
    from pdd_llamacpp_adapter.grammar import GrammarMatcher
    from pdd_llamacpp_adapter.live import LiveAnswer
    from pdd_llamacpp_adapter.profile import Throttle
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.sampler import Sampler
    from pdd_llamacpp_adapter.speed import DeviceSpeed

Progress = Callable[[int, int, str], None]
"""Called with (tokens processed, tokens there are, phase ``prefill`` or ``catch_up``)."""

LAST_LAP = 16
"""Tokens that one small batch absorbs."""


class DevicePart:
    """Brings llama.cpp level with the answer, then makes the rest of it."""

    def __init__(
        self,
        engine: DeviceEngine,
        request: AnswerRequest,
        live: LiveAnswer,
        *,
        throttle: Throttle,
        speed: DeviceSpeed,
        patience: Patience,
        rate: float,
        matcher: GrammarMatcher | None = None,
        on_progress: Progress | None = None,
    ) -> None:
        self._engine = engine
        self._request = request
        self._live = live
        self._throttle = throttle
        self._speed = speed
        self._patience = patience
        self._rate = rate
        self._matcher = matcher
        self._followed = 0
        self._on_progress = on_progress
        self._scope = anyio.CancelScope()
        self._at_work = False
        self._waits_since: float | None = None
        """Since when llama.cpp is computing; None while it is not."""
        self.reused = 0
        """Prompt tokens that were in the context already."""

    async def run(self) -> None:
        """Work until the answer is finished or the device fails. Never raises a device's error."""
        try:
            with self._scope:
                async with self._engine.exclusive():
                    self._at_work = True
                    await self._decode(await self._catch_up())
        except DeviceError as error:
            self._lost(error)
        finally:
            self._waits_since = None
        self._live.changed()

    async def watch(self) -> None:
        """Give the device up when llama.cpp does not come back in time.

        The answer does not wait for its thread, which cannot be stopped in every place: the cloud goes on at once.
        """
        limit = self._patience.device_step_s
        while True:
            since = self._live.now() if self._waits_since is None else self._waits_since
            left = since + limit - self._live.now()
            if left <= 0:
                self._lost(DeviceEngineFailed(f"llama.cpp did not come back within {limit:g} s"))
                self._live.changed()
                self.stop()
                return
            await anyio.sleep(left)

    def _lost(self, error: DeviceError) -> None:
        self._live.decided(f"the device was lost: {named(error)}")
        self._live.answer.device_failed(error)

    def stop(self) -> None:
        """Abort what the engine is doing: the answer is complete."""
        self._scope.cancel()

    def ready_in(self) -> float | None:
        """Return the seconds until catch-up by the speed so far; 0 after it, None while it cannot be said."""
        answer = self._live.answer
        if answer.owner is Source.DEVICE:
            return 0.0
        if not answer.device_able or not self._at_work:
            return None
        return self._speed.seconds(answer.behind)

    async def _catch_up(self) -> np.ndarray:
        """Process prompt and received tokens until the answer is the device's; return the logits to go on from."""
        answer = self._live.answer
        self._waits_since = self._live.now()
        self.reused = await self._engine.start(answer.prompt)
        self._waits_since = None
        answer.device_processed(self.reused)
        logits: np.ndarray | None = None
        while True:
            self._follow_grammar()
            if answer.behind:
                self._close_cloud_on_last_lap()
                # What came in while one chunk was processed is the next: far behind, chunks grow by themselves.
                logits = await self._process(answer.pending(self._throttle.chunk or self._speed.chunk))
                self._live.changed()
            elif logits is not None and answer.take_over():
                self._live.decided("the device took over")
                self._live.changed()
                return logits
            else:
                await self._wait_for_work()

    def _close_cloud_on_last_lap(self) -> None:
        """Take no more from a cloud that outruns the device's steps, once what is at hand lasts for the last one.

        Without this, a device that has all but caught up would chase such a cloud to the end of its budget.
        """
        answer = self._live.answer
        prompt_done = answer.processed >= len(answer.prompt)
        if not (answer.cloud_running and prompt_done and answer.behind <= LAST_LAP):
            return
        lap = self._speed.seconds(answer.behind)
        if lap is not None and lap < self._live.buffered / self._rate:
            answer.cloud_closed()
            self._live.decided("the cloud was closed: the device has all but caught up")
            self._live.changed()

    def _follow_grammar(self) -> None:
        """Lead the grammar over the tokens received; the device cannot go on from a text it does not allow."""
        if self._matcher is None:
            return
        fresh = self._live.answer.ids[self._followed :]
        self._followed += len(fresh)
        if (rejected := self._matcher.advance(fresh)) is not None:
            index = self._followed - len(fresh) + rejected
            raise GrammarRejected(f"the device's grammar engine rejects the cloud's token at position {index}")

    async def _wait_for_work(self) -> None:
        """Return when the answer may be taken over, or has grown. A cloud that stays silent is given up."""
        answer, limit = self._live.answer, self._patience.first_token_s
        with anyio.move_on_after(limit) as patience:
            await self._live.until(lambda: answer.may_take_over or answer.behind > 0)
        if patience.cancelled_caught and not len(answer):
            answer.cloud_lost(CloudLost(f"no first token {limit:g} s after the device was ready"))
            self._live.changed()

    async def _decode(self, logits: np.ndarray) -> None:
        from pdd_llamacpp_adapter.sampler import Sampler

        answer = self._live.answer
        sampler = Sampler(self._request, stop_ids=answer.stop_ids, output=answer.ids, matcher=self._matcher)
        choices = _Choices(sampler, answer)
        if self._throttle.profile is not None:
            await self._decode_throttled(logits, choices)
            return
        begun = self._waits_since = self._live.now()
        async with aclosing(self._engine.generate(logits, choices.choose)) as steps:
            async for choice in steps:
                now = self._live.now()
                if answer.behind:
                    self._speed.measured(1, now - begun)
                begun = self._waits_since = now
                self._made(choice)

    async def _decode_throttled(self, logits: np.ndarray, choices: _Choices) -> None:
        """Make each token no sooner than the profiled device would."""
        following: np.ndarray | None = logits
        while following is not None and not self._live.answer.finished:
            choice = choices.choose(following)
            self._made(choice)
            following = None if choice.last else await self._process([choice.token])

    def _made(self, choice: Choice) -> None:
        answer = self._live.answer
        if answer.finished:  # by a stop string, while the engine was a step ahead
            return
        answer.device_processed(answer.behind)  # to have made a token is to have processed all before it
        answer.device_made(choice.token, choice.logprobs)
        self._live.changed()

    async def _process(self, ids: list[int]) -> np.ndarray | None:
        """Process `ids`; return the logits if they are the last of what there is."""
        answer, begun = self._live.answer, self._live.now()
        self._waits_since = begun
        logits = await self._engine.extend(ids, want_logits=len(ids) == answer.behind)
        self._waits_since = None
        await self._throttle.wait(len(ids), begun)
        self._speed.measured(len(ids), self._live.now() - begun)
        answer.device_processed(len(ids))
        if answer.owner is Source.CLOUD:
            self._report(answer.processed - len(ids))
        return logits

    def _report(self, before: int) -> None:
        if self._on_progress is None:
            return
        answer, prompt = self._live.answer, len(self._live.answer.prompt)
        if before < prompt:
            self._on_progress(min(answer.processed, prompt), prompt, "prefill")
        else:
            self._on_progress(answer.processed, answer.processed + answer.behind, "catch_up")


class _Choices:
    """Chooses an answer's tokens, on the engine's thread: all it needs to know of the answer is how long it is."""

    def __init__(self, sampler: Sampler, answer: Answer) -> None:
        self._sampler = sampler
        self._stop_ids = answer.stop_ids
        self._left = answer.max_tokens - len(answer)

    def choose(self, logits: np.ndarray) -> Choice:
        """Return the next token; `logits` are changed in place."""
        token, logprobs = self._sampler.sample(logits)
        self._left -= 1
        return Choice(token, token in self._stop_ids or self._left <= 0, logprobs)
