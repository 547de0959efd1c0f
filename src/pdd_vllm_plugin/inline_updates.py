"""Updates about a handoff inside its own streamed answer, for clients whose router forwards nothing else.

vLLM's events pass unchanged. Between them come events of ours, each an OpenAI chunk without choices, which strict
clients pass over as they do the chunk with the usage.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING

from pydantic_core import to_json

from pdd_core.errors import InvalidOptIn
from pdd_core.handoff import HandoffUpdate, Refinement, Status
from pdd_core.optin import INLINE

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from starlette.types import Message, Send

    from pdd_core.handoff import NoRefinement
    from pdd_vllm_plugin.handoff_record import HandoffRecord

OBJECTS = {"/v1/chat/completions": "chat.completion.chunk", "/v1/completions": "text_completion"}
"""What the chunks of each path are that can carry updates. Others stream events of a protocol that has no room."""
_END = b"\n\n"
"""Ends each of vLLM's events."""
_DONE = b"data: [DONE]\n\n"
_IDS = 4096
"""Token ids of a refined prompt that are made JSON at a time. All of a long prompt at once would hold everybody's
tokens up, in a thread as well."""
_PART = 16384
"""Bytes from which on a part of an update is sent. Then others have their turn."""
_KEPT = ("kept_indices", "kept_token_ids")
_current: ContextVar[InlineUpdates | None] = ContextVar("pdd_inline", default=None)


class InlineUpdates:
    """The ASGI ``send`` of one request, which adds the updates to what vLLM sends."""

    def __init__(self, send: Send, path: str, hold_s: float) -> None:
        """`hold_s` bounds for how long ``[DONE]`` waits for the refinement, in seconds."""
        self._send = send
        self._object = OBJECTS[path]
        self._hold_s = hold_s
        self._record: HandoffRecord | None = None
        self._refinement: asyncio.Task[None] | None = None
        self._open = False
        """Between the begin of a stream of events and its ``[DONE]``."""
        self._budget_told = False
        self._rest = b""
        """An event that has not ended yet."""
        self._begun = asyncio.Event()
        self._turn = asyncio.Lock()

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let `follow` find this object while vLLM answers the request."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)
            if self._refinement is not None:
                self._refinement.cancel()
            self._record = None  # tasks that vLLM has begun meanwhile keep their context, some for ever

    async def __call__(self, message: Message) -> None:
        """Pass one message of vLLM's on, and what is new after it."""
        if message["type"] == "http.response.start":
            self._open = message["status"] == 200 and _is_event_stream(message)
        elif self._open and not self._is_plain(message):
            body = self._rest + message.get("body", b"")
            done = 0 if body.startswith(_DONE) else body.find(_END + _DONE)
            if done < 0:
                await self._forward(message, body)
            else:
                await self._finish(message, body, done + len(_END) if done else 0)
            return
        await self._send(message)

    def _is_plain(self, message: Message) -> bool:
        """Whether it has whole events and nothing goes with them, as is so for nearly every token."""
        body = message.get("body", b"")
        told = self._budget_told and (self._refinement is None or self._refinement.done())
        return told and not self._rest and body.endswith(_END) and _DONE not in body

    async def _forward(self, message: Message, body: bytes) -> None:
        """Send the events that are complete, and the budget if it has become known."""
        more = message.get("more_body", False)
        end = body.rfind(_END) + len(_END) if more and _END in body else 0 if more else len(body)
        async with self._turn:
            self._rest, self._open = body[end:], more
            await self._send({**message, "body": body[:end]})
            record = self._record
            if more and not self._budget_told and record is not None and record.decode_budget is not None:
                await self._tell(record)
        self._begun.set()

    async def _finish(self, message: Message, body: bytes, done: int) -> None:
        """Send what comes before ``[DONE]``, the last update, and ``[DONE]``."""
        if done:
            await self._forward({**message, "more_body": True}, body[:done])
        self._begun.set()
        if self._refinement is not None:
            await asyncio.wait({self._refinement}, timeout=self._hold_s)
        async with self._turn:
            self._open = False
            if self._record is not None:
                await self._tell(self._record, last=True)
            await self._send({**message, "body": body[done:]})

    def follow(self, record: HandoffRecord) -> None:
        """Tell of `record` from now on."""
        self._record = record
        if record.opt_in.refine_ratio is not None:
            self._refinement = asyncio.create_task(self._tell_refinement(record))

    async def _tell_refinement(self, record: HandoffRecord) -> None:
        """Send the refinement once it is settled, also when vLLM has nothing to send just then."""
        if record.refinement_pending:
            await record.refined.wait()
        await self._begun.wait()
        async with self._turn:
            if self._open:
                with suppress(OSError):  # the client has left, and vLLM is told so itself
                    await self._tell(record, _refinement_json(record.refinement))

    async def _tell(
        self, record: HandoffRecord, refinement: Iterable[bytes] = (b"null",), *, last: bool = False
    ) -> None:
        self._budget_told = self._budget_told or record.decode_budget is not None
        # vLLM may end a stream because of an error of its own: then it ends the request after [DONE].
        ended = last and record.status is Status.RUNNING
        update = HandoffUpdate(
            handoff_id=record.opt_in.handoff_id,
            request_id=record.completion_id,
            status=Status.ABORTED if ended else record.status,
            finish_reason=record.finish_reason,
            stop_reason=record.stop_reason,
            decode_budget=record.decode_budget,
            kv=record.kv if record.opt_in.kv else None,
        )
        chunk = {
            "id": record.completion_id,
            "object": self._object,
            "created": int(record.created),
            "model": record.model,
            "choices": [],
        }
        pdd = update.model_dump_json(exclude={"refinement"}).encode()
        part = b'data: %s,"pdd":%s,"refinement":' % (to_json(chunk)[:-1], pdd[:-1])
        for piece in refinement:
            if len(part) > _PART:
                await self._send({"type": "http.response.body", "body": part, "more_body": True})
                await asyncio.sleep(0)
                part = b""
            part += piece
        await self._send({"type": "http.response.body", "body": part + b"}}" + _END, "more_body": True})


def follow(record: HandoffRecord) -> None:
    """Have the answer that is being made for `record` carry its updates.

    Raises:
        InvalidOptIn: nothing can be added to it. The middleware has seen no ``pdd_inline`` in its body: it has
            more than 8 MiB, spells the name with escapes, or came on a path where updates have no place.
    """
    updates = _current.get()
    if updates is None:
        raise InvalidOptIn(
            f"{INLINE} cannot be followed here: it goes with {' and '.join(OBJECTS)}, in a body of at most 8 MiB "
            "that spells the name without JSON escapes",
            param=f"vllm_xargs.{INLINE}",
        )
    updates.follow(record)


def _refinement_json(refinement: Refinement | NoRefinement) -> Iterator[bytes]:
    text = refinement.model_dump_json(exclude=set(_KEPT)).encode()
    if not isinstance(refinement, Refinement):
        yield text
        return
    yield text[:-1]
    for name in _KEPT:
        yield b',"%s":[' % name.encode()
        ids = getattr(refinement, name)
        for start in range(0, len(ids), _IDS):
            yield (b"," if start else b"") + to_json(ids[start : start + _IDS])[1:-1]
        yield b"]"
    yield b"}"


def _is_event_stream(start: Message) -> bool:
    headers = dict(start.get("headers", ()))
    plain = b"content-encoding" not in headers
    return plain and headers.get(b"content-type", b"").startswith(b"text/event-stream")
