"""What a context holds of earlier answers, where a refined prompt was read in place of the whole one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class RefinedHistory:
    """The first ids of a memory, which are a refined prompt, and the whole prompt. Ids behind are as they were."""

    ids: tuple[int, ...]
    """What was read; its last token is the last of `prompt`."""
    prompt: tuple[int, ...]

    def without_last(self) -> RefinedHistory:
        """Return the same without the last token, which is in both."""
        return RefinedHistory(self.ids[:-1], self.prompt[:-1])

    def whole(self, held: Sequence[int]) -> list[int]:
        """Return what a memory of the ids `held` would hold had the whole prompt been read."""
        return [*self.prompt, *held[len(self.ids) :]]

    def begins(self, prompt: Sequence[int]) -> bool:
        """Whether `prompt` begins with the one that was refined."""
        return tuple(prompt[: len(self.prompt)]) == self.prompt


@dataclass(frozen=True, slots=True)
class HeldPrompt:
    """What a memory has of a prompt already."""

    length: int
    """Ids of the memory to keep."""
    covered: int
    """Tokens of the prompt that they cover; always fewer than all: the last one has to give logits."""
    history: RefinedHistory | None = None
    """What was read in place of the prompt's beginning; None where that was the prompt itself."""


def held_of(prompt: Sequence[int], ids: Sequence[int], history: RefinedHistory | None) -> HeldPrompt:
    """Return what a memory that holds `ids`, the first of them as `history` says, has of `prompt`."""
    same = common_prefix(ids, prompt[:-1])
    plain = HeldPrompt(same, same)
    if history is None or not history.begins(prompt):
        return plain
    read, covers = len(history.ids), len(history.prompt)
    if covers == len(prompt):
        refined = HeldPrompt(read - 1, covers - 1, history.without_last())
    else:
        more = common_prefix(ids[read:], prompt[covers:-1])
        refined = HeldPrompt(read + more, covers + more, history)
    return refined if refined.length and refined.covered > plain.covered else plain


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many leading ids two sequences share."""
    for index, (ours, theirs) in enumerate(zip(held, wanted, strict=False)):
        if ours != theirs:
            return index
    return min(len(held), len(wanted))
