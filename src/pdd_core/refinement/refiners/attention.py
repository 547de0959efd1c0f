"""The default: keep what the end of the prompt pays attention to, and what shares the question's words."""

from __future__ import annotations

import math
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

LEAST_FOCUS = 0.61
"""Below it, a prompt's lines matter alike, as for a summary. Measured: docs/refinement.md."""
FEWEST_LINES = 8
"""Two rankings of fewer lines may agree, or not, by chance."""


@dataclass(frozen=True, slots=True)
class AttentionRefiner:
    """Keeps lines around the tokens with the highest scores, and lines that share rare words with the question.

    Attention falls on single tokens, often beside what is meant: pooling hands a score to the neighbours, as in
    SnapKV (Li et al., 2024, arXiv:2404.14469). Without it the tokens of a hidden number are lost.

    Attention finds what is said in other words, and `LexicalRefiner` what is said in the same. Their rankings are
    fused by reciprocal rank (Cormack, Clarke and Buettcher, Reciprocal Rank Fusion outperforms Condorcet and
    individual Rank Learning Methods, 2009). Where no line shares a word with it, attention decides alone.

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
        raw, pooled = self._weights(scores, prompt)
        # pooled weights make a token's neighbours its equals, or more: where a unit is cut, it has to stay
        if not self.fuse:
            return choose(pooled, prompt, ratio, unit=self.unit, ties=raw, peaks=raw)
        starts = unit_starts(prompt.pieces, self.unit)
        by_attention, by_words = (ranks(best) for best in self._of_units(starts, pooled, prompt))
        fused = 1 / (self.fuse + by_attention) + 1 / (self.fuse + by_words)
        weights = np.repeat(fused, np.diff(starts, append=len(prompt)))
        return choose(weights, prompt, ratio, unit=self.unit, ties=pooled, peaks=raw)

    def focus(self, scores: PromptScores, prompt: RefinePrompt) -> float:
        """Return how far attention and the question's words agree on which lines matter.

        1 where both rankings are the same, and about 0 where the lines are all alike to both: the entropy of the
        lines' reciprocal ranks, of both rankings together, between that of one ranking and that of equal shares.
        It is 1, too, where nothing can be said: the lines are few, or none shares a word with the question.

        Raises:
            InvalidRefinement: the scores are of another prompt, or not all finite.
        """
        starts = unit_starts(prompt.pieces, self.unit)
        found = self._of_units(starts, self._weights(scores, prompt)[1], prompt)
        free = found[0] >= 0
        count = int(free.sum())
        if count < FEWEST_LINES or not found[1].max() > 0:
            return 1.0
        shares = [1 / ranks(best[free]) for best in found]
        both = sum(share / share.sum() for share in shares) / 2
        one = 1 / np.arange(1, count + 1)
        even = math.log(count)
        return float((even - _entropy(both)) / (even - _entropy(one / one.sum())))

    def _weights(self, scores: PromptScores, prompt: RefinePrompt) -> tuple[np.ndarray, np.ndarray]:
        """Return each token's score, and what it has of its neighbours'."""
        with np.errstate(over="ignore", invalid="ignore"):  # what is not finite is told below
            raw = scores.over_layers()
        if raw.shape != (len(prompt),):
            raise InvalidRefinement(f"scores of shape {scores.values.shape} for a prompt of {len(prompt)} tokens")
        if not np.isfinite(raw).all():
            raise InvalidRefinement("a score is not a finite number")
        if not self.lend:
            raw = np.where(protected_mask(prompt), np.float32(0), raw)
        return raw, max_pool(raw, self.pool) if self.pooling == "max" else mean_pool(raw, self.pool)

    def _of_units(self, starts: np.ndarray, pooled: np.ndarray, prompt: RefinePrompt) -> list[np.ndarray]:
        """Return what each unit is worth by attention and by the question's words; -1 where all is protected."""
        free = ~protected_mask(prompt)
        both = (pooled, LexicalRefiner().weights(prompt))
        return [np.maximum.reduceat(np.where(free, values, -1.0), starts) for values in both]


def _entropy(shares: np.ndarray) -> float:
    return float(-(shares * np.log(shares)).sum())


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
