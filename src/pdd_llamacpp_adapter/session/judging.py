"""Compares how likely both sides find the cloud's tokens, under what the device has of its prompt."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy as np

    from pdd_core.refinement.guard import Guard
    from pdd_llamacpp_adapter.engine.logprobs import NextToken
    from pdd_llamacpp_adapter.session.answer import Answer


class GuardVerdict(StrEnum):
    """What the guard said of a refined prompt, or of the cloud's cells."""

    AGREED = "agreed"
    DISAGREED = "disagreed"
    TOO_FEW = "too_few_tokens"
    """The cloud had no more tokens to judge by, and the device took over."""


class Judging:
    """The likelihoods of one answer's tokens under what the device has of the prompt."""

    def __init__(self, guard: Guard, answer: Answer) -> None:
        self._guard = guard
        self._answer = answer
        self._cloud: list[float] = []
        self._device: list[float] = []
        self._behind: np.ndarray | None = None
        self._allowed: dict[int, np.ndarray] = {}
        self.verdict: GuardVerdict | None = None
        self.excess: float | None = None
        """Nats per token by which the device finds the cloud's tokens less likely, see `Guard.excess`."""

    @property
    def judged(self) -> int:
        """Tokens compared so far."""
        return len(self._cloud)

    @property
    def going_on(self) -> bool:
        """Further tokens count."""
        return self.verdict is None and self._answer.reading.by_cloud and self.judged < self._guard.tokens

    def lacks(self, coming: int = 0) -> bool:
        """Whether there are too few tokens for a verdict, even with the next `coming` ones of the cloud's."""
        answer = self._answer
        if self.verdict is not None or not answer.reading.by_cloud:
            return False
        if len(answer) and answer.likelihoods[0] is None:
            return False  # the cloud gives none: there is nothing to wait for
        return self.judged + coming < self._guard.least_tokens

    def allow(self, index: int, allowed: np.ndarray) -> None:
        """Record which tokens a grammar allowed at `index` of the answer."""
        if index < self._guard.tokens:
            self._allowed[index] = allowed

    def following(self, count: int) -> Mapping[int, NextToken]:
        """Return what came behind each of the next `count` tokens to process, where it can be judged."""
        if not self.going_on:
            return {}
        # the answer's token behind the first of them; below 0 inside the prompt
        first = self._answer.reading.processed + 1 - len(self._answer.reading.ids)
        known = ((index, self._seen(first + index)) for index in range(max(0, -first), count))
        return {index: seen for index, seen in known if seen is not None}

    def _seen(self, index: int) -> NextToken | None:
        from pdd_llamacpp_adapter.engine.logprobs import NextToken

        answer = self._answer
        if not 0 <= index < len(answer) or answer.likelihoods[index] is None:
            return None
        return NextToken(answer[index], self._allowed.get(index))

    def processed(
        self,
        following: Mapping[int, NextToken],
        likelihoods: Sequence[float],
        *,
        behind: np.ndarray | None,
    ) -> None:
        """Compare the device's `likelihoods` of `following`, before the batch is counted as processed.

        `behind` are the logits behind the batch's last token: the next one, once it comes, is judged by them.
        """
        first = self._answer.reading.processed + 1 - len(self._answer.reading.ids)
        for index, likelihood in zip(following, likelihoods, strict=True):
            self._compare(first + index, likelihood)
        self._behind = behind

    def catch_up(self) -> None:
        """Judge the token that came behind the last one processed. One row of logits: well under a millisecond."""
        if self._behind is None or not self.going_on:
            return
        from pdd_llamacpp_adapter.engine.logprobs import log_likelihood

        index = self._answer.reading.processed - len(self._answer.reading.ids)
        if (seen := self._seen(index)) is not None:
            self._compare(index, log_likelihood(self._behind, seen))
            self._behind = None

    def _compare(self, index: int, device: float) -> None:
        cloud = self._answer.likelihoods[index]
        if cloud is not None and self.going_on:
            self._cloud.append(cloud)
            self._device.append(device)
            self.excess = self._guard.excess(self._cloud, self._device)

    def lost(self) -> bool:
        """Whether the refined prompt, or the cells, have lost what matters; if so, that is the verdict."""
        undecided = self.verdict is None and self._answer.reading.by_cloud
        if undecided and self._guard.lost(self._cloud, self._device):
            self.verdict = GuardVerdict.DISAGREED
        return self.verdict is GuardVerdict.DISAGREED

    def agreed(self) -> None:
        """Set the verdict when the device takes over: there was no objection."""
        if self.verdict is None and self._answer.reading.by_cloud:
            enough = self.judged >= self._guard.least_tokens
            self.verdict = GuardVerdict.AGREED if enough else GuardVerdict.TOO_FEW

    def __str__(self) -> str:
        if self.excess is None:
            return "no token to judge by"
        return f"{self.excess:+.2f} nats per token at worst, of {self.judged} tokens"
