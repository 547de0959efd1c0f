"""The engine's work for one answer, batch by batch: timed, held to a profile, and watched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from pdd_llamacpp_adapter.engine.speed import LARGE, SECONDS_BESIDE, Work

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np

    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
    from pdd_llamacpp_adapter.engine.device_profile import Throttle
    from pdd_llamacpp_adapter.engine.logprobs import Following
    from pdd_llamacpp_adapter.engine.slot import Slot
    from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
    from pdd_llamacpp_adapter.engine.steps import Step
    from pdd_llamacpp_adapter.session.live_answer import LiveAnswer


class Batches:
    """Runs batches on one engine and learns its speed from them."""

    def __init__(self, engine: DeviceEngine, live: LiveAnswer, *, throttle: Throttle, speed: DeviceSpeed) -> None:
        self.engine = engine
        self.slot: Slot
        """The answer's place in the engine, once it has one."""
        self.throttle = throttle
        self.speed = speed
        self.work = Work()
        """What was done for this answer."""
        self._live = live
        self.waits_since: float | None = None
        """Since when llama.cpp is computing; None while it is not."""

    def chunk(self, *, may_change: bool) -> int:
        """Return the tokens of the next prefill chunk; with `may_change`, what is left may be replaced by then.

        That is looked at between two chunks, and others' tokens are made.
        """
        if self.throttle.chunk is not None:
            return self.throttle.chunk
        if self.engine.is_decoding:
            return self.speed.chunk(least=LARGE, within=SECONDS_BESIDE)
        return self.speed.chunk(least=LARGE) if may_change else self.speed.chunk()

    async def start(self, prompt: Sequence[int], *, refined: bool) -> int:
        """Keep what the slot has of `prompt`; see `EngineMemory.start`."""
        self.waits_since = self._live.now()
        position = await self.slot.memory.start(prompt, refined=refined)
        self.waits_since = None
        return position

    async def rewind(self, length: int) -> int:
        """Keep the first `length` tokens; see `EngineMemory.rewind`."""
        self.waits_since = self._live.now()
        kept = await self.slot.memory.rewind(length)
        self.waits_since = None
        return kept

    async def add_cells(self, start: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Put cells in front of those added before; see `EngineMemory.add_cells`."""
        self.waits_since = self._live.now()
        await self.slot.memory.add_cells(start, keys, values)
        self.waits_since = None

    async def join_cells(self, ids: Sequence[int]) -> None:
        """Have the added cells follow what was processed; see `EngineMemory.join_cells`."""
        self.waits_since = self._live.now()
        await self.slot.memory.join_cells(ids)
        self.waits_since = None

    async def drop_cells(self) -> None:
        """Drop the cells that were added and not joined; see `EngineMemory.drop_cells`."""
        self.waits_since = self._live.now()
        await self.slot.memory.drop_cells()
        self.waits_since = None

    async def compare_cells(self, start: int, keys: np.ndarray, values: np.ndarray) -> float:
        """Return how similar cells are to those that the slot has; see `EngineMemory.compare_cells`."""
        self.waits_since = self._live.now()
        similarity = await self.slot.memory.compare_cells(start, keys, values)
        self.waits_since = None
        return similarity

    async def process(
        self, ids: Sequence[int], *, want_logits: bool, following: Following | None = None
    ) -> tuple[list[float], np.ndarray | None]:
        """Process `ids`; return the log-likelihoods of `following`, and the last token's logits if wanted."""
        begun = self.waits_since = self._live.now()
        likelihoods: list[float] = []
        if following:
            likelihoods, logits = await self.slot.judge(ids, following, want_logits=want_logits)
        else:
            logits = await self.slot.extend(ids, want_logits=want_logits)
        self.waits_since = None
        await self.throttle.wait(len(ids), begun)
        took = self._live.now() - begun
        self.measured(len(ids), took, self.slot.alone_s if self.throttle.profile is None else took)
        return likelihoods, logits

    def measured(self, tokens: int, seconds: float, alone: float | None) -> None:
        """Record that `tokens` took `seconds`, and would have taken `alone` with no other answer at work."""
        self.speed.measured(tokens, seconds)
        if alone is not None:
            self.work.add(tokens, alone)

    def decoded(self, step: Step, seconds: float) -> None:
        """Record a step that took `seconds`, as this answer has seen it."""
        if step.rows == 1:
            self.speed.measured(1, seconds)
        if step.rows and step.alone_s is not None:
            self.work.decoded_tokens += len(step.choices)
            self.work.decoded_s += step.alone_s

    async def hung(self, limit: float) -> None:
        """Return when llama.cpp has not come back for `limit` seconds."""
        while True:
            since = self._live.now() if self.waits_since is None else self.waits_since
            left = since + limit - self._live.now()
            if left <= 0:
                return
            await anyio.sleep(left)
