"""Brings an answer to the client: whole, or as server-sent events. A client that goes away stops both engines.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio
from starlette.responses import JSONResponse, Response

from pdd_core.timeline import Source
from pdd_llamacpp_adapter.server.answers.answering import RunningAnswer
from pdd_llamacpp_adapter.server.answers.prepared_answer import Finished
from pdd_llamacpp_adapter.server.wire.failures import CLIENT_GONE, INTERNAL, error_response

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from starlette.types import Receive, Scope, Send

    from pdd_llamacpp_adapter.server.answers.answering import Call
    from pdd_llamacpp_adapter.server.answers.prepared_answer import AnswerStep, Event, EventWriter, PreparedAnswer
    from pdd_llamacpp_adapter.server.answers.transcript import Transcript
    from pdd_llamacpp_adapter.server.wire.json_body import Json
    from pdd_llamacpp_adapter.session.outcome import Outcome

KEEP_ALIVE = b": keep-alive\n\n"
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
        tasks.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
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
    """
    return _AnswerStream(RunningAnswer(call, prepared, paced=True, described=described), writer)


class _AnswerStream(Response):
    media_type = "text/event-stream"

    def __init__(self, answer: RunningAnswer, writer: EventWriter) -> None:
        # as StreamingResponse does: no body, so no content-length
        self.status_code = 200
        self.background = None
        self.init_headers({"cache-control": "no-cache", "x-accel-buffering": "no"})
        self._answer = answer
        self._writer = writer
        self._limits = answer.call.service.limits
        self._steps = _Mailbox()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self._make)
            async with anyio.create_task_group() as watch:
                watch.start_soon(_cancel_when_gone, receive, tasks.cancel_scope)
                if not await self._deliver(send):
                    tasks.cancel_scope.cancel()
                # no longer than this: to the server, a complete response is a disconnect too
                watch.cancel_scope.cancel()
            if self._began:
                await self._send(send, b"", more=False)
            else:
                await error_response(self._answer.error or INTERNAL)(scope, receive, send)

    async def _make(self) -> None:
        try:
            await self._answer.run(self._steps.put)
        finally:
            self._steps.close()

    async def _deliver(self, send: Send) -> bool:
        """Send everything but the end of the response; False when the client takes nothing."""
        steps = await self._steps.take(self._limits.keep_alive)
        self._began = bool(steps) or not self._steps.over
        if not self._began:
            return True
        self._answer.id_went_out = True
        if (outcome := self._answer.outcome) is not None:
            self.headers[PDD_HEADER] = f"mode={outcome.mode}"
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        data, due = _encoded(self._writer.begin()), 0.0
        while True:
            data += b"".join(_encoded(self._events(step)) for step in steps)
            ended = self._steps.over or any(isinstance(step, Finished) for step in steps)
            if ended and self._answer.finished is None:
                data += _encoded(self._writer.fail(self._answer.error or INTERNAL))
            if data or anyio.current_time() >= due:
                if not await self._send(send, data or KEEP_ALIVE):
                    return False
                due = anyio.current_time() + self._limits.keep_alive
            if ended:
                return True
            # not every step says something: the client may have heard nothing for longer than this one took
            steps = await self._steps.take(max(0.0, due - anyio.current_time()))
            data = b""

    def _events(self, step: AnswerStep | Finished) -> Iterable[Event]:
        return self._writer.finish(step) if isinstance(step, Finished) else self._writer.step(step)

    async def _send(self, send: Send, data: bytes, *, more: bool = True) -> bool:
        with anyio.move_on_after(self._limits.send_timeout) as patience:
            await send({"type": "http.response.body", "body": data, "more_body": more})
        return not patience.cancelled_caught


class _Mailbox:
    """What the answer's maker has put down and its sender not yet taken.

    A client that reads slowly does not hold the engines: the maker never waits for it. The length of the answer
    bounds what can lie here.
    """

    def __init__(self) -> None:
        self._closed = False
        self._steps: list[AnswerStep | Finished] = []
        self._bell = anyio.Event()

    async def put(self, step: AnswerStep | Finished) -> None:
        self._steps.append(step)
        self._bell.set()
        await anyio.lowlevel.checkpoint()  # tokens that came at once are still sent one by one

    def close(self) -> None:
        self._closed = True
        self._bell.set()

    @property
    def over(self) -> bool:
        """Nothing is left, and nothing will come."""
        return self._closed and not self._steps

    async def take(self, patience: float) -> list[AnswerStep | Finished]:
        """Return what is there, after at most `patience` seconds; may be nothing."""
        if not self._closed:
            with anyio.move_on_after(patience):
                await self._bell.wait()
            self._bell = anyio.Event()
        steps, self._steps = self._steps, []
        return steps


async def _cancel_when_gone(receive: Receive, scope: anyio.CancelScope) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    scope.cancel()


def _encoded(events: Iterable[Event]) -> bytes:
    lines = []
    for event in events:
        if event.name is not None:
            lines.append(f"event: {event.name}\n")
        data = event.data
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        lines.append(f"data: {text}\n\n")
    return "".join(lines).encode()


def _who(outcome: Outcome) -> str:
    counts = [f"{source}={outcome.timeline.count(source)}" for source in Source]
    took_over = [] if outcome.took_over_at is None else [f"took_over={outcome.took_over_at:.3f}"]
    return ";".join([*counts, *took_over])
