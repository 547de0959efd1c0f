"""Did the refined prompt lose something? The cloud's tokens tell, and cost nothing: they are prefilled anyway."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Sequence

THRESHOLD = 0.4
"""Nats per token, over `SPAN` in a row. Measured: docs/refinement.md."""
SPAN = 4
"""So many tokens in a row are looked at together: what was lost shows in the few tokens that needed it, and a mean
over many would hide it behind those that did not."""
LEAST_TOKENS = 8
"""Fewer of the cloud's tokens do not say enough: an open answer begins with words that any text would have."""
TOKENS = 32
"""So many of the cloud's first tokens are looked at."""
LEAST_LOGPROB = -20.0
"""Nats. What lies below counts as this much, so that no single token decides; engines write minus infinity as
anything."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Compares how likely the cloud's tokens are, by the full prompt to the cloud, by the refined to the device.

    Raises:
        ConfigurationError: a field has a value that cannot work.
    """

    threshold: float = THRESHOLD
    """Nats per token over `span` in a row: above it, the refined prompt has lost something."""
    least_tokens: int = LEAST_TOKENS
    tokens: int = TOKENS
    span: int = SPAN

    def __post_init__(self) -> None:
        if not self.threshold > 0:
            raise ConfigurationError(f"threshold must be above 0 nats per token, not {self.threshold!r}")
        if not 1 <= self.least_tokens <= self.tokens:
            raise ConfigurationError(f"least_tokens must be from 1 to {self.tokens}, not {self.least_tokens!r}")
        if self.span < 1:
            raise ConfigurationError(f"span must be at least 1 token, not {self.span!r}")

    def excess(self, cloud: Sequence[float], device: Sequence[float]) -> float:
        """Return by how many nats per token the device finds the cloud's tokens less likely than the cloud did.

        That is the largest mean over `span` in a row, or the mean over all while there are fewer. From `span` on,
        it never falls as more tokens come.

        Args:
            cloud: log-probabilities (natural) of the answer's first tokens, by the cloud.
            device: those of the same tokens, by the device. Where one is longer, its rest does not count.
        """
        both = list(zip(cloud, device, strict=False))[: self.tokens]
        away = [max(theirs, LEAST_LOGPROB) - max(ours, LEAST_LOGPROB) for theirs, ours in both]
        if not away or any(map(math.isnan, away)):
            return 0.0 if not away else math.nan
        span = min(self.span, len(away))
        return max(math.fsum(away[start : start + span]) for start in range(len(away) - span + 1)) / span

    def lost(self, cloud: Sequence[float], device: Sequence[float]) -> bool:
        """Has the refined prompt lost something? False while there are too few tokens to tell.

        A likelihood that is not a number counts as a loss: the engine is not to be relied on.
        """
        if min(len(cloud), len(device)) < self.least_tokens:
            return False
        return not self.excess(cloud, device) <= self.threshold
