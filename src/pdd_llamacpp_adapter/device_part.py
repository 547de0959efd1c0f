"""The device's part of one answer: prefill, catch up with the cloud, take over, and finish."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudLost, DeviceError
from pdd_core.timeline import Source

if TYPE_CHECKING:
    import numpy as np

    from pdd_llamacpp_adapter.engine import DeviceEngine
    from pdd_llamacpp_adapter.live import LiveAnswer
    from pdd_llamacpp_adapter.profile import Throttle
    from pdd_llamacpp_adapter.request import AnswerRequest

Progress = Callable[[int, int, str], None]
"""Called with (tokens processed, tokens there are, phase ``prefill`` or ``catch_up``)."""


class DevicePart:
    """Brings llama.cpp level with the answer, then makes the rest of it."""

    def __init__(
        self,
        engine: DeviceEngine,
        request: AnswerRequest,
        live: LiveAnswer,
        *,
        throttle: Throttle,
        patience: float,
        on_progress: Progress | None,
    ) -> None:
        self._engine = engine
        self._request = request
        self._live = live
        self._throttle = throttle
        self._patience = patience
        self._on_progress = on_progress
        self._scope = anyio.CancelScope()
        self._busy = 0.0
        self._worked = 0
        self.reused = 0
        """Prompt tokens that were in the context already."""

    async def run(self) -> None:
        """Work until the answer is finished or the device fails. Never raises a device's error."""
        try:
            with self._scope:
                async with self._engine.exclusive():
                    await self._decode(await self._catch_up())
        except DeviceError as error:
            self._live.answer.device_failed(error)
        self._live.changed()

    def stop(self) -> None:
        """Abort what the engine is doing: the answer is complete."""
        self._scope.cancel()

    def ready_in(self) -> float | None:
        """Return the seconds until catch-up by the speed so far; 0 after it, None before the first chunk."""
        answer = self._live.answer
        if answer.owner is Source.DEVICE:
            return 0.0
        if answer.device_error is not None or self._worked == 0:
            return None
        return answer.behind * self._busy / self._worked

    async def _catch_up(self) -> np.ndarray:
        """Process prompt and received tokens until the answer is the device's; return the logits to go on from."""
        answer = self._live.answer
        self.reused = await self._engine.start(answer.prompt)
        answer.device_processed(self.reused)
        logits: np.ndarray | None = None
        while True:
            if answer.behind:
                # What came in while one chunk was processed is the next: far behind, chunks grow by themselves.
                logits = await self._process(answer.pending(self._throttle.chunk))
                self._live.changed()
            elif logits is not None and answer.take_over():
                self._live.changed()
                return logits
            else:
                await self._wait_for_work()

    async def _wait_for_work(self) -> None:
        """Return when the answer may be taken over, or has grown. A cloud that stays silent is given up."""
        answer = self._live.answer
        with anyio.move_on_after(self._patience) as patience:
            await self._live.until(lambda: answer.may_take_over or answer.behind > 0)
        if patience.cancelled_caught and not answer.cloud_tokens:
            answer.cloud_lost(CloudLost(f"no first token {self._patience:g} s after the device was ready"))

    async def _decode(self, logits: np.ndarray) -> None:
        from pdd_llamacpp_adapter.sampler import Sampler

        answer = self._live.answer
        sampler = Sampler(self._request, stop_ids=answer.stop_ids, output=answer.ids)
        following: np.ndarray | None = logits
        while following is not None:
            answer.device_made(sampler.sample(following))
            self._live.changed()
            following = None if answer.finished else await self._process(answer.pending(1))

    async def _process(self, ids: list[int]) -> np.ndarray | None:
        """Process `ids`; return the logits if they are the last of what there is."""
        answer, begun = self._live.answer, self._live.now()
        logits = await self._engine.extend(ids, want_logits=len(ids) == answer.behind)
        await self._throttle.wait(len(ids), begun)
        self._busy += self._live.now() - begun
        self._worked += len(ids)
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
