"""One request to the cloud, for one answer: receive, and stop the cloud when the answer no longer needs it."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudError, CloudLost, CloudRefused, SchemaVersionError, TokenizerMismatch
from pdd_llamacpp_adapter.answer import CloudEnd

if TYPE_CHECKING:
    from pdd_core.optin import OptIn
    from pdd_core.patience import Patience
    from pdd_llamacpp_adapter.cloud import CloudClient
    from pdd_llamacpp_adapter.leg_plan import LegPlan
    from pdd_llamacpp_adapter.live import LiveAnswer
    from pdd_llamacpp_adapter.stream import CloudChunk
    from pdd_llamacpp_adapter.tokenizer_check import DeviceVocabulary

logger = logging.getLogger(__name__)


class CloudLeg:
    """Feeds the cloud's tokens into the answer. `opt_in` None is a plain request that the cloud finishes."""

    def __init__(
        self,
        cloud: CloudClient,
        plan: LegPlan,
        live: LiveAnswer,
        *,
        opt_in: OptIn | None,
        vocab: DeviceVocabulary | None,
        patience: Patience,
    ) -> None:
        self._cloud = cloud
        self._plan = plan
        self._live = live
        self._opt_in = opt_in
        self._vocab = vocab
        self._patience = patience
        self._scope = anyio.CancelScope()
        self._posted = False
        self.closing = False
        """Its regular end, its loss, or a call of `close` has been seen."""
        self._repeated = 0
        self._brought = 0
        budget = plan.request.decode_budget if opt_in is not None else plan.request.max_tokens
        # a plan that repeats the answer has the repeated tokens in its budget
        begins = 0 if plan.repeats else len(live.answer)
        self.limit = None if budget is None else begins + budget
        """The answer's length at which this leg ends at the latest; None if the cloud's policy decides."""
        self.over = False
        """Nothing more will come of it, and the cloud is no longer at work for it."""
        self.cancel_confirmed: bool | None = None

    async def run(self) -> None:
        """Receive until the leg ends, is lost, or is closed. Never raises a cloud's error."""
        try:
            with self._scope:
                await self._receive()
        except (CloudError, SchemaVersionError, TokenizerMismatch) as error:
            if not self.closing:
                self.closing = True
                self._live.answer.cloud_lost(error)
        finally:
            await self.close()  # the consumer left: nobody else will
            self.over = True
            self._live.changed()

    async def _receive(self) -> None:
        request = self._plan.request
        if self._vocab is not None:
            info = await self._cloud.connected(self._vocab)
            # one stop set for both sides: llama.cpp's own idea of an end is not the cloud's
            own = () if request.ignore_eos else info.tokenizer.eos_ids
            self._live.answer.stop_ids = frozenset((*own, *request.stop_token_ids))
        self._posted = True
        waits = self._patience.cloud_prefill_s
        async with aclosing(self._cloud.stream(request, self._opt_in)) as chunks:
            while True:
                with anyio.move_on_after(waits) as scope:
                    chunk = await anext(chunks, None)
                if scope.cancelled_caught:
                    raise CloudLost(f"no token within {waits:g} s")
                if chunk is None:
                    return
                self._take(chunk)
                self._live.changed()
                waits = self._patience.cloud_silence_s

    def _take(self, chunk: CloudChunk) -> None:
        answer = self._live.answer
        again = min(len(chunk.token_ids), self._plan.repeats - self._repeated)
        if self.closing:
            answer.in_vain += len(chunk.token_ids)
            return
        for token in chunk.token_ids[:again]:
            if token != answer[self._repeated]:
                raise CloudRefused(f"the cloud did not repeat the answer: token {self._repeated} is another one")
            self._repeated += 1
        answer.in_vain += again
        answer.cloud_sent(chunk.token_ids[again:], logprobs=chunk.logprobs[again:], text=chunk.text)
        self._brought += len(chunk.token_ids) - again
        if chunk.end is CloudEnd.BUDGET and not self._brought:
            raise CloudLost("the cloud ended its part without a token")  # asking again would go on forever
        if chunk.end is not None:
            self.closing = True
            answer.cloud_ended(chunk.end)

    async def close(self) -> None:
        """Stop the cloud if it is still at work. At most once, bounded in time, and not to be interrupted.

        The stream stays open until the cloud has answered, so that every token it made in vain is counted.
        """
        if self.closing:
            return
        self.closing = True
        if self._posted and self._opt_in is not None:
            with anyio.move_on_after(self._cloud.cancel_timeout, shield=True):
                try:
                    self.cancel_confirmed = await self._cloud.cancel(self._opt_in.handoff_id)
                except CloudError as error:
                    # closing the stream below ends the request as well, only without a confirmation
                    logger.debug("the cloud gave no answer to a cancel: %s", error)
        self._scope.cancel()
