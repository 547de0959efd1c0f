"""Baseline: keep the beginning and the end, drop the middle."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import ConfigurationError
from pdd_core.hookspecs import hookimpl
from pdd_core.refinement.refiners.base import indices, keep_count, protected_mask

if TYPE_CHECKING:
    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_core.refinement.scores import PromptScores


@dataclass(frozen=True, slots=True)
class TruncationRefiner:
    """Keeps the first and the last of the tokens that are not protected.

    Raises:
        ConfigurationError: `head` is not from 0 to 1.
    """

    head: float = 0.5
    """Share of the budget that the beginning gets."""

    def __post_init__(self) -> None:
        if not 0 <= self.head <= 1:
            raise ConfigurationError(f"head must be from 0 to 1, not {self.head!r}")

    @hookimpl(trylast=True)
    def pdd_refine(
        self,
        scores: PromptScores | None,  # noqa: ARG002
        prompt: RefinePrompt,
        ratio: float,
    ) -> list[int]:
        """Return the tokens to keep."""
        keep = protected_mask(prompt)
        free = np.flatnonzero(~keep)
        left = keep_count(len(prompt), ratio, prompt.num_protected) - prompt.num_protected
        head = round(self.head * left)
        keep[free[:head]] = True
        keep[free[len(free) - (left - head) :]] = True
        return indices(keep)
