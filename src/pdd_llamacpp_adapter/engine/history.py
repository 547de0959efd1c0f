"""What a context holds of earlier answers, where a refined prompt was read in place of the whole one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True)
class RefinedHistory:
    """The first ids of a context's memory, and the prompt they stand for. Those behind stand for themselves."""

    ids: tuple[int, ...]
    """What was read; its last token is the last of `prompt`."""
    prompt: tuple[int, ...]

    def without_last(self) -> RefinedHistory:
        """Return the same without the last token, which is in both."""
        return RefinedHistory(self.ids[:-1], self.prompt[:-1])

    def whole(self, held: Sequence[int]) -> list[int]:
        """Return all that a memory of the ids `held` stands for."""
        return [*self.prompt, *held[len(self.ids) :]]

    def begins(self, prompt: Sequence[int]) -> bool:
        """Whether `prompt` begins with what this stands for."""
        return tuple(prompt[: len(self.prompt)]) == self.prompt


@dataclass(frozen=True, slots=True)
class HeldPrompt:
    """What a memory has of a prompt already."""

    length: int
    """Ids of the memory to keep."""
    covered: int
    """Tokens of the prompt that they stand for; always fewer than all: the last one has to give logits."""
    history: RefinedHistory | None = None
    """What was read in place of the prompt's beginning; None where that was the prompt itself."""


def held_of(prompt: Sequence[int], ids: Sequence[int], history: RefinedHistory | None) -> HeldPrompt:
    """Return what a memory that holds `ids`, the first of them as `history` says, has of `prompt`."""
    same = common_prefix(ids, prompt[:-1])
    plain = HeldPrompt(same, same)
    if history is None or not history.begins(prompt):
        return plain
    read, stands_for = len(history.ids), len(history.prompt)
    if stands_for == len(prompt):
        refined = HeldPrompt(read - 1, stands_for - 1, history.without_last())
    else:
        more = common_prefix(ids[read:], prompt[stands_for:-1])
        refined = HeldPrompt(read + more, stands_for + more, history)
    return refined if refined.length and refined.covered > plain.covered else plain


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many leading ids two sequences share."""
    for index, (ours, theirs) in enumerate(zip(held, wanted, strict=False)):
        if ours != theirs:
            return index
    return min(len(held), len(wanted))
