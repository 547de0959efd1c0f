"""How fast the device is, from what it did: the estimate of when it will be ready, and the size of its chunks."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from pdd_llamacpp_adapter.engine.device_profile import DEFAULT_CHUNK
from pdd_llamacpp_adapter.engine.drafting import StepCosts

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine

_WEIGHT = 0.3
"""Of the newest measurement: a few batches follow a change, one hiccup does not."""
LARGE = 16
"""From this size on, a batch's time is prefill's; below, every weight is read for a few tokens, as in decoding."""
_SECONDS_PER_CHUNK = 0.25
"""A chunk ends within this: the device then sees what has arrived meanwhile, and can take over."""
SECONDS_BESIDE = 0.1
"""The same beside other answers, whose tokens wait for its end."""
MAX_CHUNK = 2048
_PROBE_TOKENS = 96
_PROBE_STEPS = 6


class Work:
    """What an engine has done for one answer."""

    def __init__(self) -> None:
        self.read_tokens = 0
        """Tokens processed in large batches."""
        self.read_s = 0.0
        self.decoded_tokens = 0
        """Tokens processed one by one, or drafted and right."""
        self.decoded_s = 0.0

    def add(self, tokens: int, seconds: float) -> None:
        """Count a batch of `tokens` that took `seconds`."""
        if tokens >= LARGE:
            self.read_tokens += tokens
            self.read_s += seconds
        elif tokens == 1:
            self.decoded_tokens += 1
            self.decoded_s += seconds


class WorkLeft(NamedTuple):
    """How far the device is with one answer."""

    prompt_tokens: int
    to_read: int
    """Tokens that it has to process before it can go on with the answer."""
    made: int
    """Tokens that the answer has, from both sides."""


class DeviceSpeed:
    """Rates of one engine, learnt from its batches; lives longer than an answer."""

    def __init__(self) -> None:
        self.prefill_tps: float | None = None
        """Prompt tokens per second; None before the first large batch."""
        self.step_s: float | None = None
        """Seconds of one decode step; None before the first."""
        self.step_costs = StepCosts()
        """What steps with a draft take; for the engine's thread."""

    def measured(self, tokens: int, seconds: float) -> None:
        """Count a batch of `tokens` that took `seconds`."""
        if seconds <= 0:
            return
        if tokens >= LARGE:
            self.prefill_tps = _blend(self.prefill_tps, tokens / seconds)
        elif tokens == 1:
            self.step_s = _blend(self.step_s, seconds)

    def seconds(self, tokens: int) -> float | None:
        """Return the estimated time to process `tokens`; None before the first large batch."""
        if self.prefill_tps is None:
            return None
        return max(tokens / self.prefill_tps, self.step_s or 0.0) if tokens else 0.0

    def chunk(self, *, least: int = DEFAULT_CHUNK, within: float = _SECONDS_PER_CHUNK) -> int:
        """Return the tokens of the next prefill chunk: what takes `within` seconds, but `least` in any case."""
        if self.prefill_tps is None:
            return DEFAULT_CHUNK
        return int(min(MAX_CHUNK, max(least, self.prefill_tps * within)))


def _blend(old: float | None, new: float) -> float:
    return new if old is None else old + _WEIGHT * (new - old)


async def probe(engine: DeviceEngine, speed: DeviceSpeed, *, size: int) -> Work:
    """Look how fast the device is before the first answer needs it: under a second on a small model.

    Lets `engine` process some tokens of a vocabulary of `size`; tells `speed`, and returns the work.

    Raises:
        DeviceEngineFailed: llama.cpp returned an error.
    """
    work = Work()
    async with engine.exclusive() as slot:
        await slot.memory.start([0])
        ids = [token % size for token in range(min(_PROBE_TOKENS, engine.n_ctx // 2))]
        for batch in (ids[:8], ids, *([1] for _ in range(_PROBE_STEPS))):
            begun = time.monotonic()
            await slot.extend(batch, want_logits=True)
            seconds = time.monotonic() - begun
            speed.measured(len(batch), seconds)
            work.add(len(batch), seconds)
        await slot.memory.rewind(0)
    await _probe_together(engine)
    return work


async def _probe_together(engine: DeviceEngine) -> None:
    """See how much longer a step takes if all slots have a part in it."""
    slots = len(engine.slots)
    if slots > 1:
        seconds = {count: min([await engine.step_of(count) for _ in range(_PROBE_STEPS)]) for count in (1, slots)}
        engine.sharing.together = max(1.0, seconds[slots] / seconds[1])
        for slot in engine.slots:
            await slot.memory.rewind(0)
