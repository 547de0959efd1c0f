"""Brings an answer to the client: whole, or as server-sent events.

A client that goes away stops both engines, unless it has named its conversation and can come back.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from starlette.responses import JSONResponse, Response

from pdd_core.timeline import Source
from pdd_llamacpp_adapter.server.answers.answer_events import AnswerEvents
from pdd_llamacpp_adapter.server.answers.answering import RunningAnswer
from pdd_llamacpp_adapter.server.streams.stream_reading import (
    EVENT_HEADERS,
    EVENT_STREAM,
    cancel_when_gone,
    send_stream,
)
from pdd_llamacpp_adapter.server.wire.failures import CLIENT_GONE, INTERNAL, error_response

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import Receive, Scope, Send

    from pdd_llamacpp_adapter.server.answers.answering import Call
    from pdd_llamacpp_adapter.server.answers.prepared_answer import (
        AnswerStep,
        EventWriter,
        Finished,
        PreparedAnswer,
    )
    from pdd_llamacpp_adapter.server.answers.transcript import Transcript
    from pdd_llamacpp_adapter.server.wire.json_body import Json
    from pdd_llamacpp_adapter.session.outcome import Outcome

PDD_HEADER = "x-pdd"


async def whole_answer(
    call: Call,
    prepared: PreparedAnswer,
    build: Callable[[Transcript, Finished], Json],
    *,
    receive: Receive,
    described: Callable[[RunningAnswer], Json] | None = None,
) -> Response:
    """Make the answer and return it as JSON.

    The header ``x-pdd`` says who made it: ``cloud=12;device=30;took_over=0.8`` are the tokens of each engine and,
    if the device took over, when it did, in seconds since the answer began. The body's `pdd` says more.
    """
    answer = RunningAnswer(call, prepared, paced=False, described=described)

    async def nowhere(_: AnswerStep | Finished) -> None:
        pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cancel_when_gone, receive, tasks.cancel_scope)
        await answer.run(nowhere)
        tasks.cancel_scope.cancel()
    if answer.finished is not None:
        body = build(answer.transcript, answer.finished)
        return JSONResponse(body, headers={PDD_HEADER: _who(answer.finished.outcome)})
    return Response(status_code=CLIENT_GONE) if answer.error is None else error_response(answer.error)


def stream_answer(
    call: Call,
    prepared: PreparedAnswer,
    writer: EventWriter,
    *,
    described: Callable[[RunningAnswer], Json] | None = None,
) -> Response:
    """Return the answer as server-sent events, in the words of `writer`.

    An answer that fails before its first token is an ordinary HTTP error. One that has not begun when a keep-alive
    is due is a stream from then on, and a failure an event in it. The header ``x-pdd`` tells which engines take
    part, ``mode=handoff``, if that is known by then; the last events' `pdd` says who made what.

    If the client named its conversation, the stream is kept, and leaving it stops nothing.

    Raises:
        DeviceBusy: as many streams are kept as may be, and all their answers are still made.
    """
    answer = RunningAnswer(call, prepared, paced=True, described=described)
    kept = call.conversation_id and call.service.streams.limits.count
    return (_KeptAnswerStream if kept else _AnswerStream)(answer, writer)


class _AnswerStream(Response):
    media_type = EVENT_STREAM

    def __init__(self, answer: RunningAnswer, writer: EventWriter) -> None:
        # as StreamingResponse does: no body, so no content-length
        self.status_code = 200
        self.background = None
        self.init_headers(EVENT_HEADERS)
        self._answer = answer
        self._limits = answer.call.service.limits
        self._events = AnswerEvents(answer, writer, self._limits.keep_alive)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._events.make)
            async with anyio.create_task_group() as watch:
                watch.start_soon(cancel_when_gone, receive, tasks.cancel_scope)
                if not await self._deliver(send):
                    tasks.cancel_scope.cancel()
                # no longer than this: to the server, a complete response is a disconnect too
                watch.cancel_scope.cancel()
            if self._events.began:
                await self._send(send, b"", more=False)
            else:
                await error_response(self._answer.error or INTERNAL)(scope, receive, send)

    async def _deliver(self, send: Send) -> bool:
        """Send everything but the end of the response; False when the client takes nothing."""
        data = await self._events.next()
        if not self._events.began:
            return True
        await self._start(send)
        while data:
            if not await self._send(send, data):
                return False
            data = await self._events.next()
        return True

    async def _start(self, send: Send) -> None:
        if (outcome := self._answer.outcome) is not None:
            self.headers[PDD_HEADER] = f"mode={outcome.mode}"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> bool:
        with anyio.move_on_after(self._limits.send_timeout) as patience:
            await send({"type": "http.response.body", "body": data, "more_body": more})
        return not patience.cancelled_caught


class _KeptAnswerStream(_AnswerStream):
    """The same for an answer that goes on without its client, which can come back to the stream.

    The request itself makes the answer to its end, also when its client has left.
    """

    def __init__(self, answer: RunningAnswer, writer: EventWriter) -> None:
        super().__init__(answer, writer)
        self._streams = answer.call.service.streams
        self._stream, self._replaced = self._streams.begin(answer.call.conversation_id, answer.stop)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._keep)
            with self._stream.read():
                async with anyio.create_task_group() as watch:
                    watch.start_soon(cancel_when_gone, receive, watch.cancel_scope)
                    await self._stream.log.wait_begun()
                    if self._events.began:
                        await self._start(send)
                        await send_stream(self._stream, 0, send, self._limits.send_timeout)
                    else:
                        # its client is told; nobody else has to be
                        self._streams.withdraw(self._stream)
                        await error_response(self._answer.error or INTERNAL)(scope, receive, send)
                    watch.cancel_scope.cancel()

    async def _keep(self) -> None:
        """Make the answer, and keep what it says."""
        try:
            if self._replaced is not None:
                # its place in the queue is this one's
                await self._replaced.log.wait_closed()
                self._replaced = None
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._events.make)
                while data := await self._events.next():
                    self._stream.append(data)
                self._stream.end()
        finally:
            self._stream.end()


def _who(outcome: Outcome) -> str:
    counts = [f"{source}={outcome.timeline.count(source)}" for source in Source]
    took_over = [] if outcome.took_over_at is None else [f"took_over={outcome.took_over_at:.3f}"]
    return ";".join([*counts, *took_over])
