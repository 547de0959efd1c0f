"""The default: keep what the end of the prompt pays attention to, with its surroundings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pdd_core.errors import ConfigurationError, InvalidRefinement
from pdd_core.hookspecs import hookimpl
from pdd_core.refinement.refiners.base import check_unit, choose, protected_mask

if TYPE_CHECKING:
    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_core.refinement.scores import PromptScores
    from pdd_core.refinement.spans import Unit


@dataclass(frozen=True, slots=True)
class AttentionRefiner:
    """Keeps the words around the tokens with the highest scores.

    Attention falls on single tokens, often beside what is meant: pooling hands a score to the neighbours, as in
    SnapKV (Li et al., 2024, arXiv:2404.14469). Without it the tokens of a hidden number are lost.

    Raises:
        ConfigurationError: a field has a value that cannot work.
    """

    pool: int = 7
    """Tokens in a pooling window, centred on each token; 1 is no pooling."""
    pooling: Literal["max", "mean"] = "mean"
    """What a token gets of its window."""
    unit: Unit = "line"
    """What is kept whole."""
    lend: bool = False
    """Whether the scores of protected tokens go to their neighbours. The template's tokens and the first one
    draw attention whatever the text is (Xiao et al., 2023, arXiv:2309.17453), and say nothing of what is beside
    them."""

    def __post_init__(self) -> None:
        if isinstance(self.pool, bool) or not isinstance(self.pool, int) or self.pool < 1:
            raise ConfigurationError(f"pool must be a number of tokens >= 1, not {self.pool!r}")
        if self.pooling not in ("max", "mean"):
            raise ConfigurationError(f"pooling must be max or mean, not {self.pooling!r}")
        check_unit(self.unit)

    @hookimpl(trylast=True)
    def pdd_refine(self, scores: PromptScores | None, prompt: RefinePrompt, ratio: float) -> list[int] | None:
        """Return the tokens to keep, or None if there are no scores.

        Raises:
            InvalidRefinement: the scores are of another prompt, or not all finite.
        """
        if scores is None:
            return None
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told below
            raw = scores.over_layers()
        if raw.shape != (len(prompt),):
            raise InvalidRefinement(f"scores of shape {scores.values.shape} for a prompt of {len(prompt)} tokens")
        if not np.isfinite(raw).all():
            raise InvalidRefinement("a score is not a finite number")
        if not self.lend:
            raw = np.where(protected_mask(prompt), np.float32(0), raw)
        pooled = max_pool(raw, self.pool) if self.pooling == "max" else mean_pool(raw, self.pool)
        # pooled weights make a token's neighbours its equals, or more: where a unit is cut, it has to stay
        return choose(pooled, prompt, ratio, unit=self.unit, ties=raw, peaks=raw)


def max_pool(values: np.ndarray, width: int) -> np.ndarray:
    """Return the largest value of each window of `width`, centred; windows end where the values do."""
    length = len(values)
    before = (width - 1) // 2
    padded = np.full(length + width - 1, -np.inf, dtype=values.dtype)
    padded[before : before + length] = values
    span = 1
    while span < width:  # the maximum over 1, 2, 4, ... values from each on
        step = min(span, width - span)
        padded = np.maximum(padded[:-step], padded[step:])
        span += step
    return padded


def mean_pool(values: np.ndarray, width: int) -> np.ndarray:
    """Return the mean of each window of `width`, centred, as float64; windows end where the values do."""
    length = len(values)
    before = (width - 1) // 2
    total = np.concatenate([[0.0], np.cumsum(values, dtype=np.float64)])
    position = np.arange(length)
    start = np.maximum(position - before, 0)
    end = np.minimum(position - before + width, length)
    mean: np.ndarray = (total[end] - total[start]) / (end - start)
    return mean
