"""The default: keep what the end of the prompt pays attention to, and what shares the question's words."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

from pdd_core.errors import ConfigurationError, InvalidRefinement
from pdd_core.hookspecs import hookimpl
from pdd_core.refinement.refiners.base import check_unit, choose, protected_mask
from pdd_core.refinement.refiners.lexical import LexicalRefiner
from pdd_core.refinement.spans import unit_starts

if TYPE_CHECKING:
    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_core.refinement.scores import PromptScores
    from pdd_core.refinement.spans import Unit


@dataclass(frozen=True, slots=True)
class AttentionRefiner:
    """Keeps the lines around the tokens with the highest scores, and those that share rare words with the question.

    Attention falls on single tokens, often beside what is meant: pooling hands a score to the neighbours, as in
    SnapKV (Li et al., 2024, arXiv:2404.14469). Without it the tokens of a hidden number are lost.

    Attention finds what is said in other words, and `LexicalRefiner` what is said in the same. Their rankings are
    fused by reciprocal rank (Cormack, Clarke and Buettcher, Reciprocal Rank Fusion outperforms Condorcet and
    individual Rank Learning Methods, 2009). Where no line shares a word with the question, attention alone decides.

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
    fuse: int = 60
    """What is added to both ranks of a line before their reciprocals: the larger, the less the first ranks count.
    With 0 the scores alone decide."""

    def __post_init__(self) -> None:
        if isinstance(self.pool, bool) or not isinstance(self.pool, int) or self.pool < 1:
            raise ConfigurationError(f"pool must be a number of tokens >= 1, not {self.pool!r}")
        if self.pooling not in ("max", "mean"):
            raise ConfigurationError(f"pooling must be max or mean, not {self.pooling!r}")
        if isinstance(self.fuse, bool) or not isinstance(self.fuse, int) or self.fuse < 0:
            raise ConfigurationError(f"fuse must be a number >= 0, not {self.fuse!r}")
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
        if not self.fuse:
            return choose(pooled, prompt, ratio, unit=self.unit, ties=raw, peaks=raw)
        fused = self._fused(pooled, prompt)
        return choose(fused, prompt, ratio, unit=self.unit, ties=pooled, peaks=raw)

    def _fused(self, pooled: np.ndarray, prompt: RefinePrompt) -> np.ndarray:
        """Return one weight for all tokens of a unit."""
        starts = unit_starts(prompt.pieces, self.unit)
        free = ~protected_mask(prompt)
        weights = np.zeros(len(starts))
        for values in (pooled, LexicalRefiner().weights(prompt)):
            best = np.maximum.reduceat(np.where(free, values, -1.0), starts)
            weights += 1 / (self.fuse + ranks(best))
        return np.repeat(weights, np.diff(starts, append=len(prompt)))


def ranks(values: np.ndarray) -> np.ndarray:
    """Return each value's rank, from 1 for the largest on; equal values have the mean of theirs."""
    ordered = np.sort(-values)
    before, behind = (np.searchsorted(ordered, -values, side=side) for side in ("left", "right"))
    rank: np.ndarray = (before + behind + 1) / 2
    return rank


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
