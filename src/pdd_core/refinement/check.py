"""The rules of every refined prompt. Cloud and device both check them."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidRefinement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pdd_core.refinement.prompt import RefinePrompt
    from pdd_core.refinement.spans import Span


def check_kept(kept: Any, prompt_length: int, protected: Iterable[Span]) -> None:
    """Check the indices of the tokens that stay.

    Args:
        kept: a refiner's result, or what came over the wire.
        prompt_length: tokens of the full prompt.
        protected: spans that must stay.

    Raises:
        InvalidRefinement: `kept` is no list or tuple of ints, is empty, does not strictly increase, leaves the
            prompt, or lacks a protected token.
    """
    if not isinstance(kept, list | tuple):
        raise InvalidRefinement(f"kept indices must be a list, not {type(kept).__name__}")
    # Neither bool nor numpy's integers: JSON would turn the one into true and refuse the other.
    for kind in set(map(type, kept)) - {int}:
        raise InvalidRefinement(f"kept indices must be of type int, not {kind.__name__}")
    if not kept:
        raise InvalidRefinement("no token is kept")
    for before, index in pairwise(kept):
        if before >= index:
            raise InvalidRefinement(f"kept indices must increase, and {index} follows {before}")
    if kept[0] < 0 or kept[-1] >= prompt_length:
        outside = kept[0] if kept[0] < 0 else kept[-1]
        raise InvalidRefinement(f"kept index {outside} lies outside of a prompt of {prompt_length} tokens")
    present = set(kept)
    for start, end in protected:
        for index in range(start, end):
            if index not in present:
                raise InvalidRefinement(f"token {index} is protected and was dropped")


def is_kept(value: Any, prompt: RefinePrompt) -> bool:
    """Is `value` a refined prompt of `prompt`? For `Policies.first_result`."""
    try:
        check_kept(value, len(prompt), prompt.protected)
    except InvalidRefinement:
        return False
    return True
