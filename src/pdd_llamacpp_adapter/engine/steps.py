"""Steps of one answer: its next token is processed, and with it a draft of those behind, all checked at once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from pdd_core.timeline import TokenLogprobs


@dataclass(frozen=True, slots=True)
class Choice:
    """One token that was chosen."""

    token: int
    last: bool
    """No token follows it."""
    logprobs: TokenLogprobs | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """What one step came to."""

    choices: tuple[Choice, ...]
    """At least one."""
    rows: int = 0
    """Tokens that were processed, drafted ones included; 0 for a choice from logits that were there already."""
    alone_s: float | None = None
    """Seconds that it would have taken with no other answer in the batch, about; None where it is unknown."""


class Drafter(Protocol):
    """Guesses what an answer goes on with; see `LookupDrafter`."""

    def draft(self, most: int, *, beside: int = 0) -> Sequence[int]:
        """Return the tokens to check in the next step, at most `most`."""

    def made(self, token: int) -> None:
        """Count a token that was chosen."""

    def took(self, seconds: float, *, rows: int, made: int, beside: int = 0) -> None:
        """Count a step."""


class Steps:
    """One answer's choices, step by step. `choose` is called once for each token, in order, and no more often.

    So a draft changes no choice: each is made from the logits behind the same text. They may be rounded in another
    way, since llama.cpp computes a batch by other kernels than a single token.

    A step is `next_ids`, then llama.cpp, then `check` and `took`.
    """

    def __init__(
        self,
        choose: Callable[[np.ndarray], Choice],
        drafter: Drafter | None = None,
    ) -> None:
        self._choose = choose
        self._drafter = drafter
        self._ids: tuple[int, ...] = ()
        self._token = 0
        self._error: Exception | None = None

    def first(self, logits: np.ndarray) -> Step:
        """Choose from logits that are there; they are changed in place."""
        return Step((self._chosen(logits),))

    def next_ids(self, most: int, *, beside: int = 0) -> tuple[int, ...]:
        """Return what the next batch is to have of this answer: its last token, and at most `most` drafted ones.

        `beside` tokens of the batch are others'. Raises what `choose` raised behind the tokens of the last step.
        """
        if self._error is not None:
            raise self._error
        draft = () if self._drafter is None or most < 1 else self._drafter.draft(most, beside=beside)
        self._ids = (self._token, *draft)
        return self._ids

    def check(self, logits_at: Callable[[int], np.ndarray]) -> tuple[Choice, ...]:
        """Choose behind each of `next_ids` until one differs from the draft, or is the answer's last.

        As many of these ids as there are choices belong to the answer; the others are to be dropped from memory.

        Args:
            logits_at: index in `next_ids` -> logits behind it; changed in place.
        """
        made: list[Choice] = []
        for index, expected in enumerate((*self._ids[1:], None)):
            try:
                choice = self._chosen(logits_at(index))
            except Exception as error:
                if not made:
                    raise
                self._error = error  # the tokens before are good
                break
            made.append(choice)
            if choice.last or choice.token != expected:
                break
        return tuple(made)

    def took(self, seconds: float, *, made: int, beside: int = 0) -> None:
        """Count what the batch with `next_ids` took to compute."""
        if self._drafter is not None:
            self._drafter.took(seconds, rows=len(self._ids), made=made, beside=beside)

    def _chosen(self, logits: np.ndarray) -> Choice:
        choice = self._choose(logits)
        self._token = choice.token
        if self._drafter is not None:
            self._drafter.made(choice.token)
        return choice
