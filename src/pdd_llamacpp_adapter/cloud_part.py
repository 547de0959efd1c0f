"""The cloud's part of one answer: receive, and stop the cloud when the answer no longer needs it."""

from __future__ import annotations

import logging
from contextlib import aclosing
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudError, SchemaVersionError, TokenizerMismatch

if TYPE_CHECKING:
    from pdd_core.optin import OptIn
    from pdd_llamacpp_adapter.cloud import CloudClient
    from pdd_llamacpp_adapter.live import LiveAnswer
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.vocab import Vocabulary

logger = logging.getLogger(__name__)


class CloudPart:
    """Feeds the cloud's tokens into the answer. `opt_in` None is a plain request that the cloud finishes."""

    def __init__(
        self,
        cloud: CloudClient,
        request: AnswerRequest,
        live: LiveAnswer,
        *,
        opt_in: OptIn | None,
        vocab: Vocabulary | None,
    ) -> None:
        self._cloud = cloud
        self._request = request
        self._live = live
        self._opt_in = opt_in
        self._vocab = vocab
        self._scope = anyio.CancelScope()
        self._posted = False
        self._over = False
        self.texts: dict[int, str] = {}
        """Text by index of the token it came with: all there is to show when no vocabulary is at hand."""
        self.cancel_confirmed: bool | None = None

    async def run(self) -> None:
        """Receive until the cloud's part ends, is lost, or is cancelled. Never raises a cloud's error."""
        try:
            with self._scope:
                await self._receive()
        except (CloudError, SchemaVersionError, TokenizerMismatch) as error:
            self._over = True
            self._live.answer.cloud_lost(error)
        finally:
            await self.cancel()  # the consumer left: nobody else will
            self._live.changed()

    async def _receive(self) -> None:
        answer = self._live.answer
        if self._opt_in is not None and self._vocab is not None:
            info = await self._cloud.connected(self._vocab)
            # one stop set for both sides: llama.cpp's own idea of an end is not the cloud's
            answer.stop_ids = frozenset((*info.tokenizer.eos_ids, *self._request.stop_token_ids))
        self._posted = True
        async with aclosing(self._cloud.stream(self._request, self._opt_in)) as chunks:
            async for chunk in chunks:
                before = len(answer)
                answer.cloud_sent(chunk.token_ids)
                if self._vocab is None and len(answer) > before:
                    # never text before its last token
                    self.texts[len(answer) - 1] = chunk.text
                if chunk.end is not None:
                    self._over = True
                    answer.cloud_ended(chunk.end)
                self._live.changed()

    async def cancel(self) -> None:
        """Stop the cloud if it is still at work. At most once, bounded in time, and not to be interrupted.

        The stream stays open until the cloud has answered, so that every token it made in vain is counted.
        """
        if self._over:
            return
        self._over = True
        if self._posted and self._opt_in is not None:
            with anyio.move_on_after(self._cloud.cancel_timeout, shield=True):
                try:
                    self.cancel_confirmed = await self._cloud.cancel(self._opt_in.handoff_id)
                except CloudError as error:
                    # closing the stream below ends the request as well, only without a confirmation
                    logger.debug("the cloud gave no answer to a cancel: %s", error)
        self._scope.cancel()
