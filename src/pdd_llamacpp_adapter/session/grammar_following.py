"""Leads a grammar over the tokens received: the device can go on only from a text that it allows."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.errors import GrammarRejected

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from pdd_llamacpp_adapter.engine.grammar import GrammarMatcher
    from pdd_llamacpp_adapter.session.answer import Answer


class GrammarFollower:
    """One answer's grammar, followed up to its newest token. `matcher` None is an answer without one."""

    def __init__(self, matcher: GrammarMatcher | None, answer: Answer, *, size: int) -> None:
        self.matcher = matcher
        self._answer = answer
        self._size = size
        self._followed = 0

    def follow(self, note: Callable[[int, np.ndarray], object] | None = None) -> None:
        """Go on over the tokens that are new.

        Args:
            note: called with each token's index and what might have come there, bool of shape (n_vocab,).

        Raises:
            DeviceEngineFailed: the grammar has outgrown llguidance's limits.
            GrammarRejected: a token does not fit.
        """
        if self.matcher is None:
            return
        for index in range(self._followed, len(self._answer)):
            if note is not None:
                allowed = self.matcher.mask(self._size)
                # what came was allowed, though the device might spell it otherwise
                if self._answer[index] < self._size:
                    allowed[self._answer[index]] = True
                note(index, allowed)
            if self.matcher.advance((self._answer[index],)) is not None:
                raise GrammarRejected(f"the device's grammar engine rejects the cloud's token at position {index}")
        self._followed = len(self._answer)
