"""A prompt as a refiner sees it: ids, texts, and what must stay."""

from __future__ import annotations

from dataclasses import dataclass

from pdd_core.errors import InvalidRefinement
from pdd_core.refinement.spans import Span, merge_spans


@dataclass(frozen=True, slots=True)
class RefinePrompt:
    """A prompt that is to be refined.

    Raises:
        InvalidRefinement: `pieces` and `token_ids` differ in length.
    """

    token_ids: tuple[int, ...]
    """The whole prompt."""
    pieces: tuple[str, ...]
    """The text of each token, as in the prompt: with its blanks and newlines, special tokens spelt out
    (``<|im_end|>``). A token that is part of a character has any text without blanks, or none."""
    special_ids: frozenset[int] = frozenset()
    """Ids that are control tokens of the model, not text."""
    protected: tuple[Span, ...] = ()
    """Spans that stay. Given in any order, kept sorted, disjoint, merged and within the prompt."""

    def __post_init__(self) -> None:
        if len(self.pieces) != len(self.token_ids):
            raise InvalidRefinement(f"{len(self.pieces)} pieces for {len(self.token_ids)} tokens")
        object.__setattr__(self, "protected", merge_spans(self.protected, len(self.token_ids)))

    def __len__(self) -> int:
        return len(self.token_ids)

    def protected_indices(self) -> list[int]:
        """Return the protected positions, increasing."""
        return [index for start, end in self.protected for index in range(start, end)]

    @property
    def num_protected(self) -> int:
        """How many tokens are protected."""
        return sum(end - start for start, end in self.protected)
