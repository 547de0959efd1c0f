"""What an instance is given to do, and what became of it, as arrays."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pdd_lab.traces.trace import HASH_BLOCK

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from numpy.typing import NDArray

    from pdd_lab.simulator.step_clock import StepClock
    from pdd_lab.traces.trace import Trace

_SLAB = 1 << 16


def _none() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Load:
    """Requests for one instance, in the order of arrival; one entry per request."""

    arrival_s: NDArray[np.float64]
    """Ascending."""
    prompt_tokens: NDArray[np.int64]
    """At least 1."""
    output_tokens: NDArray[np.int64]
    """Tokens that the cloud decodes, at least 1: a decode budget is already counted in."""
    hash_offsets: NDArray[np.int64] = field(default_factory=_none)
    """As in a `Trace`."""
    hash_values: NDArray[np.int64] = field(default_factory=_none)
    block_tokens: int = HASH_BLOCK

    def __len__(self) -> int:
        return len(self.arrival_s)

    @classmethod
    def of(cls, trace: Trace, output_tokens: NDArray[np.int64] | None = None) -> Self:
        """Return a trace's requests, with other numbers of output tokens if there are any."""
        return cls(
            trace.arrival_s,
            trace.prompt_tokens,
            trace.output_tokens if output_tokens is None else output_tokens,
            trace.hash_offsets,
            trace.hash_values,
            trace.block_tokens,
        )

    @classmethod
    def at_once(cls, requests: int, prompt: int, output: int, *, shared: int = 0, block_tokens: int = 16) -> Self:
        """Return equal requests, all there at time 0; the first `shared` prompt tokens are common to them."""
        common = shared // block_tokens
        return cls(
            np.zeros(requests),
            np.full(requests, prompt, dtype=np.int64),
            np.full(requests, output, dtype=np.int64),
            np.arange(requests + 1, dtype=np.int64) * common,
            np.tile(np.arange(common, dtype=np.int64), requests),
            block_tokens,
        )

    def rows(self) -> Iterator[tuple[float, int, int, tuple[int, ...]]]:
        """Yield arrival, prompt, output and hash blocks, made into Python's own numbers some at a time."""
        hashed = len(self.hash_values) > 0
        for begin in range(0, len(self), _SLAB):
            end = min(begin + _SLAB, len(self))
            hashes: list[tuple[int, ...]] = [()] * (end - begin)
            if hashed:
                offsets = self.hash_offsets[begin : end + 1].tolist()
                values = self.hash_values[offsets[0] : offsets[-1]].tolist()
                first = offsets[0]
                hashes = [tuple(values[offsets[i] - first : offsets[i + 1] - first]) for i in range(end - begin)]
            yield from zip(
                self.arrival_s[begin:end].tolist(),
                self.prompt_tokens[begin:end].tolist(),
                self.output_tokens[begin:end].tolist(),
                hashes,
                strict=True,
            )


@dataclass(frozen=True, slots=True)
class Served:
    """What became of a load. Times in seconds, on the load's own clock."""

    first_token_s: NDArray[np.float64]
    """When the first token was made; nan for a request that the KV cache can never hold."""
    finish_s: NDArray[np.float64]
    """When the last token was made."""
    cached_tokens: NDArray[np.int64]
    """Prompt tokens found in the prefix cache, at the first admission."""
    end_s: float
    """When the last step ended."""
    busy_s: float
    """Of that time, what the engine computed."""
    steps: int
    prefill_tokens: int
    """Computed, so without what was cached, and with what was computed again after a preemption."""
    decode_tokens: int
    """Tokens made, each request's first included."""
    preemptions: int
    refused: int
    most_running: int
    """The largest number of sequences in one step."""
    most_batched_tokens: int
    """The largest number of tokens computed in one step."""
    most_blocks: int
    """The largest number of KV blocks held by running sequences."""

    @property
    def requests_per_s(self) -> float:
        """Requests served over the time it took; nan for none."""
        served = int(np.count_nonzero(np.isfinite(self.finish_s)))
        return served / self.end_s if self.end_s else float("nan")


class Tally:
    """What becomes of a load, while it is served."""

    def __init__(self, requests: int) -> None:
        self.first = array("d", bytes(8 * requests))
        self.finish = array("d", bytes(8 * requests))
        self.cached = array("q", bytes(8 * requests))
        self.prefilled = self.decoded = self.preempted = self.refused = 0
        self.most_running = self.most_batched = self.most_blocks = 0

    def refuse(self, index: int) -> None:
        """Count a request that the KV cache can never hold."""
        self.refused += 1
        self.first[index] = self.finish[index] = math.nan

    def note(self, running: int, batched: int, blocks: int) -> None:
        """Note a step's sequences, its tokens, and the blocks held."""
        if running > self.most_running:
            self.most_running = running
        if batched > self.most_batched:
            self.most_batched = batched
        if blocks > self.most_blocks:
            self.most_blocks = blocks

    def served(self, clock: StepClock) -> Served:
        """Return it all, once the last step has ended."""
        return Served(
            first_token_s=np.frombuffer(self.first, dtype=np.float64),
            finish_s=np.frombuffer(self.finish, dtype=np.float64),
            cached_tokens=np.frombuffer(self.cached, dtype=np.int64),
            end_s=clock.now,
            busy_s=clock.busy,
            steps=clock.step,
            prefill_tokens=self.prefilled,
            decode_tokens=self.decoded,
            preemptions=self.preempted,
            refused=self.refused,
            most_running=self.most_running,
            most_batched_tokens=self.most_batched,
            most_blocks=self.most_blocks,
        )
