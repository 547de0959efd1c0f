"""Prompts without a meaning: random token ids of a given length, with common beginnings where a trace has them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from pdd_lab.traces import Trace

VOCAB_SIZE = 32_000
"""Ids that nearly every model has; servers do not tell how many theirs are."""
_FIRST_ID = 1_000
"""Below it are many models' control tokens and single bytes."""


class Prompts:
    """Makes prompts. The same `seed` makes the same ones.

    Raises:
        ConfigurationError: a vocabulary too small to draw from.
    """

    def __init__(self, *, vocab_size: int = VOCAB_SIZE, seed: int = 0) -> None:
        if vocab_size < 2:
            raise ConfigurationError(f"a vocabulary has at least 2 tokens, not {vocab_size}")
        self._ids = (min(_FIRST_ID, vocab_size // 2), vocab_size)
        self._seed = seed

    def random(self, length: int, *key: int) -> list[int]:
        """Return `length` ids, the same for the same `key`: another key has nothing in common with it."""
        draw = np.random.default_rng([self._seed, *key])
        found: list[int] = draw.integers(*self._ids, size=length).tolist()
        return found

    def of_request(self, trace: Trace, index: int) -> list[int]:
        """Return a prompt as long as request `index` of `trace` has it; equal hashes are equal blocks of ids.

        Without hashes no two prompts have a beginning in common.
        """
        length = int(trace.prompt_tokens[index])
        ids: list[int] = []
        for block in trace.hashes(index):
            ids += self.random(trace.block_tokens, 1, int(block) & 0xFFFF_FFFF_FFFF_FFFF)
        if len(ids) < length:
            ids += self.random(length - len(ids), 2, index)
        return ids[:length]
