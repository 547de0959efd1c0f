"""Baseline: keep words at random."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.hookspecs import hookimpl
from pdd_core.refinement.refiners.base import check_unit, choose
from pdd_core.refinement.spans import unit_starts

if TYPE_CHECKING:
    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_core.refinement.scores import PromptScores
    from pdd_core.refinement.spans import Unit


@dataclass(frozen=True, slots=True)
class RandomRefiner:
    """Keeps words that the ids of the prompt and `seed` draw: the same ones each time.

    Raises:
        ConfigurationError: `unit` is not the name of a unit.
    """

    unit: Unit = "word"
    """What is kept whole. Each has the same chance, whatever its length."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_unit(self.unit)

    @hookimpl(trylast=True)
    def pdd_refine(
        self,
        scores: PromptScores | None,  # noqa: ARG002
        prompt: RefinePrompt,
        ratio: float,
    ) -> list[int]:
        """Return the tokens to keep."""
        drawn = np.random.default_rng([self.seed, zlib.crc32(np.asarray(prompt.token_ids, dtype="<i8").tobytes())])
        starts = unit_starts(prompt.pieces, self.unit)
        weights = np.repeat(drawn.random(len(starts)), np.diff(starts, append=len(prompt)))
        return choose(weights, prompt, ratio, unit=self.unit)
