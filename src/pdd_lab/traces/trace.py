"""A trace in memory: one row per request, as numpy arrays."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

MOST_TOKENS = 2**31 - 1
"""Of one prompt or answer. More is a broken file."""
HASH_BLOCK = 512
"""Prompt tokens of a hash block where nobody says otherwise: Mooncake's."""


def _none() -> NDArray[np.int64]:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Trace:
    """Requests in the order of their arrival. Every array but the hash values has one entry per request."""

    name: str
    arrival_s: NDArray[np.float64]
    """Seconds since the first request, ascending from 0."""
    prompt_tokens: NDArray[np.int64]
    """At least 1."""
    output_tokens: NDArray[np.int64]
    """At least 1."""
    hash_offsets: NDArray[np.int64] = field(default_factory=_none)
    """Request i has the blocks ``hash_values[hash_offsets[i]:hash_offsets[i + 1]]``; empty: none are known."""
    hash_values: NDArray[np.int64] = field(default_factory=_none)
    """Two prompts whose first k hashes are equal have their first ``k * block_tokens`` tokens in common."""
    block_tokens: int = HASH_BLOCK
    """Prompt tokens per hash block."""
    groups: NDArray[np.int64] = field(default_factory=_none)
    """Index into `group_names`; empty: all are of one group."""
    group_names: tuple[str, ...] = ()
    sessions: NDArray[np.int64] = field(default_factory=_none)
    """Number of the conversation, -1 for a request outside any; empty: none is known."""
    read_as: str = ""
    """The format and the units in which its file was read; empty for a made-up trace."""
    dropped: int = 0
    """Rows of the file that were left out, because a prompt or an answer without tokens cannot be served."""

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return float(self.arrival_s[-1]) if len(self) else 0.0

    @property
    def requests_per_s(self) -> float:
        """Mean rate of arrivals; 0 with fewer than two."""
        return (len(self) - 1) / self.seconds if self.seconds else 0.0

    def hashes(self, index: int) -> NDArray[np.int64]:
        """Return the hash blocks of one request's prompt."""
        if not len(self.hash_offsets):
            return self.hash_values[:0]
        return self.hash_values[self.hash_offsets[index] : self.hash_offsets[index + 1]]

    def group(self, index: int) -> str:
        """Return the name of one request's group, "" where there is none."""
        return self.group_names[int(self.groups[index])] if len(self.groups) else ""

    def first(self, count: int) -> Trace:
        """Return the first `count` requests."""
        if count >= len(self):
            return self
        hashed = len(self.hash_offsets) > 0
        return replace(
            self,
            arrival_s=self.arrival_s[:count],
            prompt_tokens=self.prompt_tokens[:count],
            output_tokens=self.output_tokens[:count],
            hash_offsets=self.hash_offsets[: count + 1],
            hash_values=self.hash_values[: self.hash_offsets[count]] if hashed else self.hash_values,
            groups=self.groups[:count],
            sessions=self.sessions[:count],
        )

    def shorter(self, max_tokens: int) -> Trace:
        """Return the same requests, whose answers end after `max_tokens` at the latest."""
        return replace(self, output_tokens=np.minimum(self.output_tokens, max_tokens))

    def faster(self, factor: float) -> Trace:
        """Return the same requests, arriving `factor` times as fast; infinity: all at once."""
        return replace(self, arrival_s=self.arrival_s / factor)
