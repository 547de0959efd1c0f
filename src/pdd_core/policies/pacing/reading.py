"""The speed at which people read."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError
from pdd_core.hookspecs import Pacer, hookimpl
from pdd_core.policies.pacing.fixed import FixedRate
from pdd_core.policies.pacing.unlimited import Unlimited

if TYPE_CHECKING:
    from pdd_core.hookspecs import PaceTarget

WORDS_PER_MINUTE = 238.0
"""Adults reading English non-fiction silently (Brysbaert, Journal of Memory and Language 109, 2019, 104047)."""
TOKENS_PER_WORD = 4 / 3
"""OpenAI's rule of thumb for English: 100 tokens are about 75 words. Other languages need more."""


class ReadingSpeedPacing:
    """Built-in implementation of ``pdd_pace``: the reader's speed, where the target rate is not slower.

    Args:
        words_per_minute: the reader's speed.

    Raises:
        ConfigurationError: `words_per_minute` is not a positive number.
    """

    def __init__(self, words_per_minute: float = WORDS_PER_MINUTE) -> None:
        if not 0 < words_per_minute < math.inf:
            raise ConfigurationError(f"words_per_minute must be a positive number, not {words_per_minute}")
        self.rate = words_per_minute / 60 * TOKENS_PER_WORD
        """Tokens per second."""

    @hookimpl(trylast=True)
    def pdd_pace(self, target: PaceTarget) -> Pacer:
        """Return a pacer at the reader's speed."""
        if math.isinf(target.rate):
            return Unlimited()
        return FixedRate(replace(target, rate=min(self.rate, target.rate)))
