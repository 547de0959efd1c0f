"""One request to the cloud, for one answer: receive, and stop the cloud when the answer no longer needs it."""

from __future__ import annotations

import logging
import math
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudError, CloudLost, CloudRefused, SchemaVersionError, TokenizerMismatch
from pdd_core.handoff import BUDGET_POLICIES, INLINE_UPDATES
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.session.arrivals import Arrivals
from pdd_llamacpp_adapter.session.leg_plan import NOT_REPEATED
from pdd_llamacpp_adapter.session.leg_updates import LAST_WORDS_S, LegUpdates
from pdd_llamacpp_adapter.session.stop_ids import stop_ids

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pdd_core.handoff import CloudInfo
    from pdd_core.optin import OptIn
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
    from pdd_llamacpp_adapter.cloud.cloud_stream import CloudChunk
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary
    from pdd_llamacpp_adapter.session.leg_plan import LegPlan
    from pdd_llamacpp_adapter.session.session_setup import SessionSetup

logger = logging.getLogger(__name__)

_LEAVING_S = 3.0
"""For the cloud's answer to a cancel, once nobody waits for the answer any more."""


class CloudLeg:
    """Feeds the cloud's tokens into the answer.

    Args:
        setup: the session's.
        cloud: the cloud to ask.
        plan: what to ask for.
        opt_in: None for a plain request that the cloud finishes.
        on_begun: called once, after the first chunk, where what the leg asks for besides tokens has to be fetched:
            not if the cloud has it not, nor if it tells unasked.
    """

    def __init__(
        self,
        setup: SessionSetup,
        cloud: CloudClient,
        plan: LegPlan,
        *,
        opt_in: OptIn | None,
        on_begun: Callable[[], object] | None,
    ) -> None:
        self._setup = setup
        self._live = setup.live
        self._patience = setup.options.patience
        self._cloud = cloud
        self._plan = plan
        self._opt_in = opt_in
        self._on_begun = on_begun
        self._scope = anyio.CancelScope()
        self._posted = False
        self._left = False
        self._stopping: anyio.CancelScope | None = None
        self._stopped = anyio.Event()
        self.closing = False
        """Its regular end, its loss, or a call of `close` has been seen."""
        self._repeated = 0
        self._brought = 0
        self._used = 0
        """Tokens of this leg that are part of the answer."""
        budget = plan.request.decode_budget if opt_in is not None else plan.request.max_tokens
        # a plan that repeats the answer has the repeated tokens in its budget
        self._begins = 0 if plan.repeats else len(setup.live.answer)
        self.limit = None if budget is None else self._begins + budget
        """The answer's length at which this leg ends at the latest; None while only the cloud's policy knows."""
        self._updates: LegUpdates | None = None
        self.arrivals = Arrivals()
        """When its tokens came."""
        self.over = False
        """No token will come of it any more, and the cloud is no longer at work for it."""
        self.cancel_confirmed: bool | None = None

    async def run(self) -> None:
        """Receive until the leg ends, is lost, or is closed. Never raises a cloud's error."""
        try:
            await self._received()
            if self._updates is not None:
                self._updates.ended(begun=self._brought > 0)
        finally:
            try:
                await self.close()  # the consumer left: nobody else will
            finally:
                self.over = True
                self._live.changed()

    async def _received(self) -> None:
        try:
            with self._scope:
                await self._receive()
        except (CloudError, SchemaVersionError, TokenizerMismatch) as error:
            if not self.closing:
                self.closing = True
                self._live.answer.cloud_lost(error)

    async def _receive(self) -> None:
        request, opt_in, vocab = self._plan.request, self._opt_in, self._setup.options.vocab
        if vocab is not None:
            info = await self._connected(vocab)
            opt_in = self._possible(info)
            self._live.answer.stop_ids = stop_ids(request, told=info, vocab=vocab)
        self._posted = True
        self.arrivals.posted_at = self._live.now()
        waits = self._patience.cloud_prefill_s
        if self._setup.wants_likelihoods and request.logprobs is None:
            request = replace(request, logprobs=0)
        inline = {} if self._updates is None else {"on_update": self._told}
        async with aclosing(self._cloud.stream(request, opt_in, **inline)) as chunks:
            while True:
                with anyio.move_on_after(waits) as scope:
                    chunk = await anext(chunks, None)
                if scope.cancelled_caught:
                    raise CloudLost(f"no token within {waits:g} s")
                if chunk is None:
                    return
                self._take(chunk)
                if self._on_begun is not None:
                    self._on_begun()
                    self._on_begun = None
                self._live.changed()
                if chunk.end is not None:
                    await self._last_words(chunks)
                    return
                waits = self._patience.cloud_silence_s

    def _told(self, update: object) -> None:
        if self._updates is None:
            return
        self._updates.take(update)
        if (budget := self._updates.budget) is not None:
            ends = self._begins + budget
            self.limit = ends if self.limit is None else min(self.limit, ends)

    async def _last_words(self, chunks: AsyncGenerator[CloudChunk]) -> None:
        """Hear what the cloud may yet tell of the prompt. Nobody waits for this but the device."""
        if self._updates is None or not self._updates.waited_for or self._stopping is not None:
            return
        self.over = True
        self._live.changed()
        with anyio.move_on_after(LAST_WORDS_S):
            await anext(chunks, None)

    async def _connected(self, vocab: Vocabulary) -> CloudInfo:
        limit = self._patience.cloud_prefill_s
        with anyio.move_on_after(limit):
            return await self._cloud.connected(vocab)
        raise CloudLost(f"no word from the cloud within {limit:g} s")

    def _possible(self, info: CloudInfo) -> OptIn | None:
        """Return the opt-in without what the cloud has switched off, or does not know."""
        opt_in, fetch, cells = self._opt_in, self._setup.fetch, self._setup.cells
        if opt_in is None:
            return None
        if BUDGET_POLICIES not in info.features:
            opt_in = replace(opt_in, least_budget=None, extends=None)
        if opt_in.refine_ratio is not None and fetch is not None and info.refinement == "off":
            fetch.give_up("not_enabled", "the cloud refines no prompts")
            self._on_begun = None
            opt_in = replace(opt_in, refine_ratio=None, protect=())
        if opt_in.kv and cells is not None and not cells.agree(info, self._cloud):
            self._on_begun = None
            opt_in = replace(opt_in, kv=False)
        if INLINE_UPDATES in info.features:
            asked = fetch if opt_in.refine_ratio is not None else None
            self._updates = LegUpdates(self._live, opt_in.handoff_id, asked)
            if not opt_in.kv:
                self._on_begun = None
            opt_in = replace(opt_in, inline=True)
        return opt_in

    def _take(self, chunk: CloudChunk) -> None:
        answer = self._live.answer
        self.arrivals.came(len(chunk.token_ids), self._live.now())
        again = min(len(chunk.token_ids), self._plan.repeats - self._repeated)
        if self.closing:
            answer.in_vain += len(chunk.token_ids)
            return
        for token in chunk.token_ids[:again]:
            if token != answer[self._repeated]:
                problem = f"the cloud did not repeat the answer: token {self._repeated} is another one"
                raise CloudRefused(problem, code=NOT_REPEATED)
            self._repeated += 1
        answer.in_vain += again
        fresh = chunk.logprobs[again:]
        before = len(answer)
        answer.cloud_sent(
            chunk.token_ids[again:],
            logprobs=() if self._plan.request.logprobs is None else fresh,
            likelihoods=[one.chosen.logprob for one in fresh],
            text=chunk.text,
        )
        self._used += len(answer) - before
        self._brought += len(chunk.token_ids) - again
        if chunk.end is CloudEnd.BUDGET and not self._brought:
            raise CloudLost("the cloud ended its part without a token")  # asking again would go on forever
        if chunk.end is not None:
            self.closing = True
            answer.cloud_ended(chunk.end)

    async def close(self) -> None:
        """Stop the cloud if it is still at work. At most once, bounded in time, and not to be interrupted.

        The stream stays open until the cloud has answered, so that every token it made in vain is counted. If it
        ends before that, this waits for the answer of the call that asks for it.
        """
        if self.closing:
            if self._stopping is not None:
                await self._stopped.wait()
            return
        self.closing = True
        if self._posted and self._opt_in is not None:
            limit = min(self._cloud.cancel_timeout, _LEAVING_S if self._left else math.inf)
            try:
                with anyio.move_on_after(limit, shield=True) as self._stopping:
                    self.cancel_confirmed = await self._cloud.cancel(self._opt_in.handoff_id, used=self._used)
            except CloudError as error:
                # closing the stream below ends the request as well, only without a confirmation
                logger.debug("the cloud gave no answer to a cancel: %s", error)
            finally:
                self._stopped.set()
        self._scope.cancel()

    def leave(self) -> None:
        """Do not wait long any more: the answer's consumer leaves, and others may be waiting for its place."""
        self._left = True
        if self._stopping is not None:
            self._stopping.deadline = min(self._stopping.deadline, anyio.current_time() + _LEAVING_S)
