"""What the refiners share: how many tokens stay, and the choice of the best words or lines."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np

from pdd_core.errors import ConfigurationError, InvalidRefinement
from pdd_core.refinement.spans import UNITS, Unit, unit_starts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_core.refinement.scores import PromptScores

ROUNDING = 1e-9
"""Tokens. 0.07 * 100 is 7.000000000000001, and means 7."""


class Refiner(Protocol):
    """An implementation of ``pdd_refine``, with all of the hook's arguments."""

    def pdd_refine(self, scores: PromptScores | None, prompt: RefinePrompt, ratio: float) -> Sequence[int] | None:
        """Return the indices of the tokens that stay; see `pdd_core.hookspecs.PDDSpecs`."""


def keep_count(length: int, ratio: float, protected: int = 0) -> int:
    """Return how many of `length` tokens stay: the share `ratio`, rounded up; all `protected` ones; one at least.

    Raises:
        ConfigurationError: `ratio` is not above 0 and at most 1.
    """
    if not 0 < ratio <= 1:
        raise ConfigurationError(f"the ratio must be a number above 0 and at most 1, not {ratio!r}")
    return min(length, max(math.ceil(ratio * length - ROUNDING), protected, 1))


def check_unit(unit: Unit) -> None:
    """Check a refiner's setting `unit`.

    Raises:
        ConfigurationError: it is not the name of a unit.
    """
    if unit not in UNITS:
        raise ConfigurationError(f"unit must be one of {', '.join(UNITS)}, not {unit!r}")


def choose(
    weights: np.ndarray,
    prompt: RefinePrompt,
    ratio: float,
    *,
    unit: Unit = "word",
    ties: np.ndarray | None = None,
    peaks: np.ndarray | None = None,
) -> list[int]:
    """Return the protected tokens and the best of the others, increasing: `keep_count` of them.

    A unit is worth as much as its best token, so that no number is kept in part. Units are taken whole, the best
    ones first, until the count is reached; only the last one may be cut, to its best tokens.

    Args:
        weights: of each token, shape (prompt tokens,); those of protected ones do not matter.
        prompt: the full prompt.
        ratio: share of its tokens to keep.
        unit: what is taken whole.
        ties: second weights, which order what `weights` makes equal. Among equals the earlier go first.
        peaks: other weights. The unit that is cut keeps its best token by these, even if `weights` would drop it.

    Raises:
        ConfigurationError: `ratio` is not above 0 and at most 1.
        InvalidRefinement: weights have another length, or a value is not finite.
    """
    length = len(prompt)
    ties = np.zeros(length) if ties is None else ties
    for values in (weights, ties) if peaks is None else (weights, ties, peaks):
        if values.shape != (length,):
            raise InvalidRefinement(f"weights of shape {values.shape} for a prompt of {length} tokens")
        if not np.isfinite(values).all():
            raise InvalidRefinement("a weight is not a finite number")
    keep = protected_mask(prompt)
    left = keep_count(length, ratio, prompt.num_protected) - prompt.num_protected
    if left <= 0:
        return indices(keep)
    free = np.flatnonzero(~keep)
    unit_of = np.zeros(length, dtype=np.intp)
    unit_of[unit_starts(prompt.pieces, unit)[1:]] = 1
    unit_of = np.cumsum(unit_of)[free]
    # Where the units begin among the free tokens: protected tokens are left out of theirs.
    first = np.flatnonzero(np.diff(unit_of, prepend=-1))
    sizes = np.diff(first, append=len(free))
    best, second = weights[free], ties[free]
    order = np.lexsort((-np.maximum.reduceat(second, first), -np.maximum.reduceat(best, first)))
    taken = np.cumsum(sizes[order])
    whole = int(np.searchsorted(taken, left, side="right"))
    chosen = np.zeros(len(first), dtype=bool)
    chosen[order[:whole]] = True
    keep[free[np.repeat(chosen, sizes)]] = True
    rest = left - (int(taken[whole - 1]) if whole else 0)
    if rest:
        start = first[order[whole]]
        cut = free[start : start + sizes[order[whole]]]
        beside = np.arange(len(cut)) != (-1 if peaks is None else peaks[cut].argmax())
        keep[cut[np.lexsort((-ties[cut], -weights[cut], beside))[:rest]]] = True
    return indices(keep)


def protected_mask(prompt: RefinePrompt) -> np.ndarray:
    """Return which tokens are protected: bool, shape (prompt tokens,)."""
    mask = np.zeros(len(prompt), dtype=bool)
    for start, end in prompt.protected:
        mask[start:end] = True
    return mask


def indices(mask: np.ndarray) -> list[int]:
    """Return where `mask` is true, as ints of Python's own."""
    found: list[int] = np.flatnonzero(mask).tolist()
    return found
