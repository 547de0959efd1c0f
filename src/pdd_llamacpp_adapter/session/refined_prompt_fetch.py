"""Gets the refined prompt of one answer from the cloud, checks it, and keeps it for the device.

A cloud that knows how tells it inside the stream. Others are asked for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudError, CloudLost, InvalidRefinement, SchemaVersionError, named
from pdd_core.handoff import NoRefinement
from pdd_core.refinement.check import check_kept
from pdd_core.refinement.protect import protected_spans
from pdd_llamacpp_adapter.cloud.cloud_gate import shown

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anyio.abc import TaskGroup

    from pdd_core.handoff import Refinement
    from pdd_core.refinement.spans import Span
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.session.live_answer import LiveAnswer

WAIT_S = 10.0
"""How long to ask for a refinement at most: the cloud has it within milliseconds of its first token, or never."""
_WAY_S = 5.0
"""For the way there and back: an answer that drips in never ends, and an answer may wait for it."""


def protected_by_device(request: AnswerRequest, vocab: Vocabulary) -> tuple[Span, ...]:
    """Return the spans that a request's refined prompt has to keep. Takes milliseconds for a long one."""
    ids = request.prompt_token_ids
    special = frozenset(token for token in set(ids) if vocab.is_special(token))
    spelt = {token: vocab.spelt(token) for token in set(ids)}
    return protected_spans(ids, [spelt[token] for token in ids], special, marked=request.protect)


class RefinedPromptFetch:
    """One answer's refined prompt: what is asked for, and what came.

    Args:
        live: the answer.
        ratio: share of the prompt's tokens to keep.
        protected: spans of the prompt that any refined prompt has to keep; one that does not is refused.
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

    def protected_until(self, position: int) -> int:
        """Return the end of the protected span that is at `position` of the prompt; `position` if none is."""
        return next((end for start, end in self.protected if start <= position < end), position)

    def protected_from(self, position: int) -> int:
        """Return how many tokens of the prompt from `position` on stay in any case."""
        return sum(max(0, end - max(start, position)) for start, end in self.protected)

    def start(self, tasks: TaskGroup, cloud: CloudClient, handoff_id: str) -> None:
        """Begin to ask the cloud, which has sent its first token. Never raises a cloud's error."""
        self._asks = True
        tasks.start_soon(self._run, cloud, handoff_id)

    def expect(self) -> None:
        """Wait for what the cloud tells inside the stream that is about to begin."""
        self._asks = True

    def expect_no_more(self, *, begun: bool) -> None:
        """Do without, if there is none by now: the stream is over. One that had not `begun` may be asked again."""
        self._asks = False
        if begun and not self._live.answer.finished:
            self.give_up("unavailable", "the cloud's stream ended without a word of it")
        self._live.changed()

    def told(self, refinement: Refinement | NoRefinement) -> None:
        """Take what the cloud tells inside the stream. Never raises for what it says."""
        if isinstance(refinement, NoRefinement) and refinement.reason == "pending":
            return
        try:
            self._take(refinement)
        except InvalidRefinement as error:
            self.give_up("invalid", str(error))
        self._live.changed()

    async def _run(self, cloud: CloudClient, handoff_id: str) -> None:
        try:
            with anyio.move_on_after(WAIT_S + _WAY_S):
                state = await cloud.handoff(handoff_id, wait=WAIT_S)
                self._take(state.refinement, prompt_ids=state.prompt_token_ids)
                return
            raise CloudLost("no word of the refined prompt in time")
        except (CloudError, SchemaVersionError) as error:
            self.give_up("unavailable", named(error))
        except InvalidRefinement as error:
            self.give_up("invalid", str(error))
        finally:
            self._asks = False
            self._live.changed()

    def _take(self, refinement: Refinement | NoRefinement, *, prompt_ids: Sequence[int] | None = None) -> None:
        if self.settled:
            return
        match refinement:
            case NoRefinement() as none:
                self.give_up(none.reason, shown(none.message))
            case _:
                self._check(refinement, prompt_ids)
                self.kept = tuple(refinement.kept_indices)
                share = f"{len(self.kept)} of {len(self._live.answer.prompt)} prompt tokens"
                self._live.decided(f"the cloud refined the prompt to {share} ({refinement.method})")

    def _check(self, refinement: Refinement, prompt_ids: Sequence[int] | None) -> None:
        prompt = self._live.answer.prompt
        # the last token is what the answer follows: without it there is no seam
        check_kept(refinement.kept_indices, len(prompt), (*self.protected, (len(prompt) - 1, len(prompt))))
        if prompt_ids is not None and tuple(prompt_ids) != prompt:
            raise InvalidRefinement("the refined prompt is of another prompt")
        if refinement.kept_token_ids != [prompt[index] for index in refinement.kept_indices]:
            raise InvalidRefinement("the kept ids are not those of the prompt at the kept indices")

    def give_up(self, reason: str, message: str) -> None:
        """Do without a refined prompt, unless there is one. The first reason counts."""
        if self.settled:
            return
        self.reason = reason
        if not self._live.answer.finished and self._live.took_over_at is None:
            self._live.decided(f"the prompt was not refined: {message}")
