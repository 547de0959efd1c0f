"""Times llama.cpp: one pass through a long context, in which everything is measured once.

A pass fills the context as a prompt does, in chunks; stops at certain lengths to decode a few tokens one by one;
and at one length processes batches of several sizes, as the device does with tokens that it has received. Passes
with different numbers of threads take turns, so that a change of the machine's speed hits all of them.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import ConfigurationError
from pdd_llamacpp_adapter.engine.device_profile import DEFAULT_CHUNK

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pdd_llamacpp_adapter.engine.llama_sequence import LlamaSequence

STEPS = 8
"""Tokens decoded one by one at each length."""
BATCH_TIMES = 3
"""How often each batch size is measured in a pass; the median counts."""
_LENGTHS = (128, 256, 512, 1024, 2048, 4096, 8192, 16_384, 32_768)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """What is measured.

    Raises:
        ConfigurationError: there is nothing to measure, or a number is out of its range.
    """

    lengths: tuple[int, ...]
    """Context lengths at which decoding is measured; prefill is measured between them."""
    threads: tuple[int, ...]
    reps: int
    batches: tuple[int, ...] = _BATCHES

    def __post_init__(self) -> None:
        if not self.lengths or self.reps < 1 or not self.threads or min(self.threads) < 1:
            raise ConfigurationError("a measurement needs a length of at least 128, a thread and a repetition")

    @classmethod
    def up_to(cls, longest: int, *, threads: Sequence[int], reps: int) -> DevicePlan:
        """Return the plan that goes up to `longest` tokens."""
        lengths = tuple(length for length in _LENGTHS if length < longest)
        whole = (*lengths, longest) if longest >= _LENGTHS[0] else ()
        batches = tuple(size for size in _BATCHES if size <= longest // 2)
        return cls(whole, tuple(dict.fromkeys(threads)), reps, batches)

    @property
    def batch_at(self) -> int:
        """The length at which batches are measured: in the middle."""
        return self.lengths[len(self.lengths) // 2]

    @property
    def room(self) -> int:
        """Tokens that the context has to hold."""
        return self.lengths[-1] + STEPS * len(self.lengths) + BATCH_TIMES * sum(self.batches)

    def order(self) -> Iterator[tuple[int, int]]:
        """Yield the passes, (repetition, threads): every other time in the opposite order."""
        for rep in range(self.reps):
            for count in self.threads if rep % 2 == 0 else reversed(self.threads):
                yield rep, count


@dataclass(frozen=True, slots=True)
class Sample:
    """One timing."""

    kind: str
    """``prefill``, ``decode`` or ``batch``."""
    at: float
    """Tokens in the context, in the middle of what was timed."""
    tokens: int
    """Processed; of a batch, its size."""
    seconds: float

    @property
    def tps(self) -> float:
        """Tokens per second."""
        return self.tokens / self.seconds


def one_pass(
    sequence: LlamaSequence,
    plan: DevicePlan,
    ids: Sequence[int],
    *,
    clock: Callable[[], float] = time.perf_counter,
) -> Iterator[Sample]:
    """Fill the context once, and yield what was measured on the way. `ids` has at least `plan.room` tokens."""
    sequence.rewind(0)

    def timed(count: int, *, want_logits: bool = False) -> float:
        held = len(sequence.ids)
        batch = ids[held : held + count]
        begun = clock()
        sequence.decode(batch, want_logits=want_logits)
        return clock() - begun

    for length in plan.lengths:
        begin, seconds = len(sequence.ids), 0.0
        while (left := length - len(sequence.ids)) > 0:
            seconds += timed(min(DEFAULT_CHUNK, left))
        count = len(sequence.ids) - begin
        if count:
            yield Sample("prefill", begin + count / 2, count, seconds)
        begin = len(sequence.ids)
        step = statistics.median(timed(1, want_logits=True) for _ in range(STEPS))
        yield Sample("decode", begin + STEPS / 2, STEPS, STEPS * step)
        if length == plan.batch_at:
            before = len(sequence.ids)
            for size in plan.batches:
                begin = len(sequence.ids)
                took = statistics.median(timed(size, want_logits=True) for _ in range(BATCH_TIMES))
                yield Sample("batch", begin + BATCH_TIMES * size / 2, size, took)
            sequence.rewind(before)


def random_ids(vocab_size: int, count: int) -> list[int]:
    """Return `count` token ids, always the same: speed does not depend on which."""
    found: list[int] = np.random.default_rng(0).integers(0, vocab_size, size=count).tolist()
    return found
