"""The client of the cloud: an OpenAI client that knows vLLM's extras and the plugin's routes."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import anyio
import openai
from pydantic import BaseModel

from pdd_core.env import Env
from pdd_core.errors import CloudLost, CloudRefused
from pdd_core.fingerprint import Name
from pdd_core.handoff import (
    BUDGET_POLICIES,
    TOKENIZER_DIGEST,
    CloudInfo,
    HandoffDeleted,
    HandoffState,
    VocabularyPiece,
)
from pdd_core.http_client import new_async_client
from pdd_core.kv.frames import FrameReader
from pdd_core.session_id import SESSION_HEADER
from pdd_core.state_request import StateRequest, Verb
from pdd_llamacpp_adapter.cloud.cells_stream import read_cells
from pdd_llamacpp_adapter.cloud.cloud_errors import answered
from pdd_llamacpp_adapter.cloud.cloud_gate import STREAMED, bounded_reading, parsed
from pdd_llamacpp_adapter.cloud.cloud_part import CloudPart
from pdd_llamacpp_adapter.cloud.cloud_request import body_fields
from pdd_llamacpp_adapter.cloud.cloud_route import POST_PATH, CloudRoute, Way
from pdd_llamacpp_adapter.cloud.cloud_sessions import CloudSessions
from pdd_llamacpp_adapter.cloud.cloud_stream import ANY_ID, CloudChunk, read_stream
from pdd_llamacpp_adapter.cloud.tokenizer_check import check_tokenizer

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from pdd_core.kv.frames import Frame
    from pdd_core.kv.geometry import KVGeometry
    from pdd_core.optin import OptIn
    from pdd_llamacpp_adapter.cloud.tokenizer_check import DeviceVocabulary
    from pdd_llamacpp_adapter.request import AnswerRequest

_NO_KEY = "EMPTY"
"""vLLM's own convention for a server without keys."""
_CONNECT_TIMEOUT = 5.0
_CANCEL_TIMEOUT = 5.0
"""Seconds for a cancel, until the cloud has told its own bound."""
_CANCEL_MARGIN = 2.0
"""Seconds for the way there and back, on top of the cloud's own bound."""
_LONGEST_CANCEL = 60.0
"""Seconds, whatever bound the cloud tells."""


class CloudClient:
    """One cloud. An async context manager; belongs to the event loop it is first used in.

    Args:
        base_url: as for any OpenAI client, ``http://host:port/v1``.
        api_key: the cloud's key; default PDD_CLOUD_API_KEY.
        model: the name to ask for; default what the cloud serves.
        tenant: for whom the cloud works, where it has ceilings per tenant.
        timeout: seconds without a byte after which the cloud counts as lost.
        session_header: the header by which a router keeps a conversation on one replica; empty for none.

    Raises:
        ConfigurationError: `session_header` is no name for it.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        model: str | None = None,
        tenant: str | None = None,
        timeout: float = 600.0,
        session_header: str = SESSION_HEADER,
    ) -> None:
        if api_key is None and (key := Env().cloud_api_key) is not None:
            api_key = key.get_secret_value()
        self.sessions = CloudSessions(session_header)
        """What keeps a conversation on one replica."""
        self._client = new_async_client(
            base_url,
            api_key=api_key or _NO_KEY,
            timeout=openai.Timeout(timeout, connect=_CONNECT_TIMEOUT),
            max_retries=2,
            http_options=bounded_reading(),
        )
        self._model = model
        self._served: str | None = None
        """What the cloud last called its model."""
        self._tenant = tenant
        self._checked: DeviceVocabulary | None = None
        self.route = CloudRoute(self._client, self.sessions, self._model_name)
        """How it is asked what is no answer."""
        self.info: CloudInfo | None = None
        """What the cloud told about itself; None before `connect`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.close()

    async def close(self) -> None:
        """Close all connections."""
        await self._client.close()

    @property
    def url(self) -> str:
        """Where it is asked."""
        return str(self._client.base_url)

    @property
    def cancel_timeout(self) -> float:
        """Seconds to wait for the answer to a cancel."""
        if self.info is None:
            return _CANCEL_TIMEOUT
        return min(self.info.limits.cancel_timeout_s, _LONGEST_CANCEL) + _CANCEL_MARGIN

    @property
    def _knows_budget_policies(self) -> bool:
        return self.info is not None and BUDGET_POLICIES in self.info.features

    @property
    def _digest(self) -> str | None:
        """Digest of the tokenizer that was compared with the device's own, for a cloud that knows the field."""
        info = None if self._checked is None else self.info
        return info.tokenizer.digest if info is not None and TOKENIZER_DIGEST in info.features else None

    async def connect(self, vocab: DeviceVocabulary | None = None, *, retries: int = 2) -> CloudInfo:
        """Read what the cloud is and, with `vocab`, check that token ids can cross.

        Raises:
            CloudUnreachable: no connection.
            CloudRefused: an error answer, or a server without the plugin.
            SchemaVersionError: the cloud speaks a newer major version of the wire schema.
            TokenizerMismatch: the vocabularies differ; the message names the first difference.
        """
        try:
            info = await self.route.connect(retries=retries)
        except CloudRefused:
            self._served = None  # by POST, the name is part of the question: it may be another one by now
            raise
        known = self.info is not None and self._checked is vocab and self.info.tokenizer == info.tokenizer
        if vocab is not None and not known:
            await check_tokenizer(info.tokenizer, vocab, self._vocabulary_piece)
        self.info, self._checked, self._served = info, vocab, info.model
        return info

    async def connected(self, vocab: DeviceVocabulary) -> CloudInfo:
        """Return what `connect` returned for this vocabulary; connect if that was not done. Raises as `connect`.

        Fails at the first attempt: in the middle of an answer, the device can go on.
        """
        if self.info is not None and self._checked is vocab:
            return self.info
        return await self.connect(vocab, retries=0)

    async def _vocabulary_piece(self, start: int) -> VocabularyPiece:
        return await self.route.ask(StateRequest(Verb.VOCABULARY, start=start), VocabularyPiece)

    async def stream(
        self,
        request: AnswerRequest,
        opt_in: OptIn | None,
        *,
        on_update: Callable[[object], object] | None = None,
    ) -> AsyncGenerator[CloudChunk]:
        """Send `request` and yield what comes, chunk by chunk, until the cloud's part has ended.

        With `opt_in` the cloud keeps to its budget and can be cancelled; without, it is a plain vLLM request.
        Either way, one that has another vocabulary by now refuses it, if it knows ``pdd_tokenizer``.
        With `on_update`, as in `read_stream`, this goes on behind the last chunk while updates may come.

        Raises:
            CloudUnreachable: no connection.
            CloudRefused: the cloud answered with an error before the first token, or does not stream as vLLM does.
            CloudLost: the stream broke off, lacks or repeats an event, or ended without a finish reason.
        """
        client = self._client.with_options(max_retries=0)  # whether to ask again is the answer's to decide
        if opt_in is not None and self._knows_budget_policies:
            opt_in = replace(opt_in, tenant=self._tenant)
        session = self.sessions.begin(request.session or "", None if opt_in is None else opt_in.handoff_id)
        headers = self.sessions.headers(session, f"{self._client.base_url}{POST_PATH.removeprefix('/')}")
        model, url = await self._model_name(), self._client.base_url
        with CloudPart(request, opt_in, model=model, url=url) as part:
            stream = await answered(
                client.completions.create(
                    model=model,
                    prompt=list(request.prompt_token_ids),
                    stream=True,
                    extra_body=body_fields(request, opt_in, tokenizer=self._digest),
                    extra_headers={**STREAMED, **headers, **(part.headers or {})},
                )
            )
            self.sessions.received(session, stream.response)
            ids_below = ANY_ID if self._checked is None else len(self._checked.token_bytes)
            events = read_stream(
                stream,
                prompt_tokens=len(request.prompt_token_ids),
                max_tokens=request.max_tokens,
                top_logprobs=request.logprobs or 0,
                ids_below=ids_below,
                longest=0 if opt_in is None else self._longest(request),
                on_update=on_update,
            )
            async with aclosing(events) as chunks:
                async for chunk in chunks:
                    part.end = chunk.end
                    yield chunk  # nobody may ask for more after the last one

    def _longest(self, request: AnswerRequest) -> int:
        """Return the tokens at which the cloud ends an answer for its length, budgets aside; 0 if unknown."""
        if self.info is None:
            return 0
        defaults = self.info.default_sampling_params
        room = self.info.max_model_len - len(request.prompt_token_ids)
        # vLLM's own limit holds for requests that ask for more
        own = None if defaults is None else defaults.max_tokens
        return min(request.max_tokens, room, request.max_tokens if own is None else own)

    async def _model_name(self) -> str:
        if self._model is not None:
            return self._model
        if self._served is None:
            body = await answered(self._client.get("/models", cast_to=bytes))
            models = parsed(body, _Models)
            if not models.data:
                raise CloudRefused("the cloud serves no model")
            self._served = models.data[0].id
        return self._served

    async def handoff(self, handoff_id: str, *, wait: float = 0.0) -> HandoffState:
        """Read the state of a handoff; `wait` seconds at most for what is not decided yet.

        Raises:
            CloudUnreachable: no connection.
            CloudRefused: an error answer, or one that is not a state; status 404 where the id is gone.
            SchemaVersionError: the cloud speaks a newer major version of the wire schema.
        """
        return await self.route.ask(StateRequest(Verb.READ, handoff_id, wait=wait), HandoffState, retries=0)

    async def cells(
        self,
        handoff_id: str,
        start: int,
        end: int,
        geometry: KVGeometry,
        *,
        silence_s: float = 5.0,
        on_bytes: Callable[[int], object] = lambda _: None,
    ) -> AsyncGenerator[Frame]:
        """Yield the cells of a handoff's prompt from position `start` to `end`, from the back to the front.

        Closing the generator closes the connection at once.

        Args:
            handoff_id: whose prompt.
            start: first position.
            end: position behind the last one.
            geometry: as the cloud has told.
            silence_s: seconds without an answer, or without a further byte of it, after which it counts as lost.
            on_bytes: called with the size of all that comes, as it comes.

        Raises:
            CloudUnreachable: no connection.
            CloudRefused: an error answer; status 404 where the cells, or the id, are gone.
            CloudLost: the stream broke off, or stalled.
            InvalidCells: what came is corrupt, or was not asked for.
        """
        question = StateRequest(Verb.CELLS, handoff_id, begin=start, end=end)
        with anyio.move_on_after(silence_s) as scope:
            stream = await self.route.cells(question)
        if scope.cancelled_caught:
            raise CloudLost(f"no answer to a question for cells within {silence_s:g} s")
        frames = FrameReader(geometry, start, end)
        async with aclosing(read_cells(stream, frames, silence_s=silence_s, on_bytes=on_bytes)) as read:
            async for frame in read:
                yield frame

    async def cancel(self, handoff_id: str, *, used: int | None = None) -> bool:
        """Stop the cloud's decoding for `handoff_id`, and drop its state.

        `used` is how many of its tokens are part of the answer: the cloud counts the others as made in vain.

        Returns whether the cloud confirmed that it makes no further token. An id that is gone counts as confirmed,
        unless a router may have asked another replica.

        Raises:
            CloudUnreachable: no connection.
            CloudRefused: an error answer other than "not found".
        """
        question = StateRequest(Verb.CANCEL, handoff_id, used=used if self._knows_budget_policies else None)
        try:
            return (await self.route.ask(question, HandoffDeleted)).confirmed
        except CloudRefused as error:
            if error.status == 404:
                return self.route.way is not Way.POST
            raise


class _Model(BaseModel):
    id: Name


class _Models(BaseModel):
    """OpenAI's list of models, as far as it is needed."""

    data: list[_Model]
