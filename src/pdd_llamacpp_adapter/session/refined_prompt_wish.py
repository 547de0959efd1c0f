"""The refined prompt of one answer: asked of the cloud, checked, and put where the device finds it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from pdd_core.errors import CloudError, InvalidRefinement, SchemaVersionError, named
from pdd_core.handoff import NoRefinement
from pdd_core.refinement.check import check_kept
from pdd_core.refinement.protect import protected_spans

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_core.handoff import HandoffState, Refinement
    from pdd_core.refinement.spans import Span
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.session.live_answer import LiveAnswer

WAIT_S = 10.0
"""How long to ask for a refinement at most: the cloud has it within milliseconds of its first token, or never."""


class SpeltVocabulary(Protocol):
    """What finding the protected tokens needs of a vocabulary."""

    def is_special(self, token_id: int) -> bool:
        """Whether the token is not ordinary text."""

    def spelt(self, token_id: int) -> str:
        """The token's text, control tokens spelt out."""


def protected_by_device(request: AnswerRequest, vocab: SpeltVocabulary) -> tuple[Span, ...]:
    """Return the spans that a request's refined prompt has to keep. Takes milliseconds for a long one."""
    ids = request.prompt_token_ids
    special = frozenset(token for token in set(ids) if vocab.is_special(token))
    spelt = {token: vocab.spelt(token) for token in set(ids)}
    return protected_spans(ids, [spelt[token] for token in ids], special, marked=request.protect)


class RefinedPromptWish:
    """One answer's wish for a refined prompt, and what became of it.

    Args:
        live: the answer.
        ratio: share of the prompt's tokens to keep.
        protected: what has to stay, and whatever comes is checked against.
    """

    def __init__(self, live: LiveAnswer, ratio: float, protected: Sequence[Span]) -> None:
        self.ratio = ratio
        self.protected = tuple(protected)
        self.kept: tuple[int, ...] | None = None
        """Positions of the prompt's tokens that stay, once they are known and found right."""
        self.reason: str | None = None
        """Why there is no refined prompt, in a word of the wire's `NoRefinement.reason` or of ours."""
        self._live = live
        self._asks = False

    @property
    def settled(self) -> bool:
        """There is a refined prompt, or there will be none."""
        return self.kept is not None or self.reason is not None

    @property
    def may_come(self) -> bool:
        """A refined prompt is still on its way."""
        return not self.settled and (self._asks or self._live.answer.cloud_running)

    def certain(self, covered: int) -> int:
        """Return how far a device that has read `covered` prompt tokens can go on, whatever will be dropped."""
        return next((end for start, end in self.protected if start <= covered < end), covered)

    def protected_from(self, position: int) -> int:
        """Return how many tokens of the prompt from `position` on stay in any case."""
        return sum(max(0, end - max(start, position)) for start, end in self.protected)

    def begun(self) -> None:
        """Take note that `fetch` is about to be called."""
        self._asks = True

    async def fetch(self, cloud: CloudClient, handoff_id: str) -> None:
        """Ask the cloud for it, after its first token. Never raises a cloud's error."""
        try:
            state = await cloud.handoff(handoff_id, wait=WAIT_S)
            self._take(state)
        except (CloudError, SchemaVersionError) as error:
            self.none("unavailable", named(error))
        except InvalidRefinement as error:
            self.none("invalid", str(error))
        finally:
            self._asks = False
        self._live.changed()

    def _take(self, state: HandoffState) -> None:
        if self.settled:
            return
        match state.refinement:
            case NoRefinement() as none:
                self.none(none.reason, none.message)
            case refinement:
                self._check(refinement, state.prompt_token_ids)
                self.kept = tuple(refinement.kept_indices)
                share = f"{len(self.kept)} of {len(self._live.answer.prompt)} prompt tokens"
                self._live.decided(f"the cloud refined the prompt to {share} ({refinement.method})")

    def _check(self, refinement: Refinement, prompt_ids: Sequence[int]) -> None:
        prompt = self._live.answer.prompt
        # the last token is what the answer follows: without it there is no seam
        check_kept(refinement.kept_indices, len(prompt), (*self.protected, (len(prompt) - 1, len(prompt))))
        if tuple(prompt_ids) != prompt:
            raise InvalidRefinement("the refined prompt is of another prompt")
        if refinement.kept_token_ids != [prompt[index] for index in refinement.kept_indices]:
            raise InvalidRefinement("the kept ids are not those of the prompt at the kept indices")

    def none(self, reason: str, message: str) -> None:
        """Take note that there is no refined prompt, and why. The first reason counts."""
        if self.settled:
            return
        self.reason = reason
        if not self._live.answer.finished and self._live.took_over_at is None:
            self._live.decided(f"the prompt was not refined: {message}")
