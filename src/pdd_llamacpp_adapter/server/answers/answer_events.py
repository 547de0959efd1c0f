"""An answer as the bytes of its server-sent events, piece by piece as it is made.

https://html.spec.whatwg.org/multipage/server-sent-events.html
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import anyio

from pdd_llamacpp_adapter.server.answers.prepared_answer import Finished
from pdd_llamacpp_adapter.server.wire.failures import INTERNAL

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pdd_llamacpp_adapter.server.answers.answering import RunningAnswer
    from pdd_llamacpp_adapter.server.answers.prepared_answer import AnswerStep, Event, EventWriter

KEEP_ALIVE = b": keep-alive\n\n"


class AnswerEvents:
    """The events of `answer`, in the words of `writer`. One task makes the answer, one takes the pieces.

    Args:
        answer: what is told.
        writer: tells it.
        keep_alive: seconds after which a piece says that there is nothing to say.
    """

    def __init__(self, answer: RunningAnswer, writer: EventWriter, keep_alive: float) -> None:
        self._answer = answer
        self._writer = writer
        self._keep_alive = keep_alive
        self._steps = _Mailbox()
        self._is_first = True
        self._ended = False
        self.began = False
        """Whether there is a stream. An answer that fails before its client has heard anything is none."""

    async def make(self) -> None:
        """Make the answer. Nobody who takes the pieces slowly holds it up."""
        try:
            await self._answer.run(self._steps.put)
        finally:
            self._steps.close()

    async def next(self) -> bytes:
        """Return the next piece, once there is one; none after the last."""
        data, due = b"", anyio.current_time() + self._keep_alive
        while not data and not self._ended:
            # not every step says something: the client may have heard nothing for longer than this one took
            steps = await self._steps.take(max(0.0, due - anyio.current_time()))
            first, self._is_first = self._is_first, False
            if first:
                self.began = self._answer.id_went_out = bool(steps) or not self._steps.over
                data = _encoded(self._writer.begin())
            data += b"".join(_encoded(self._events(step)) for step in steps)
            self._ended = self._steps.over or any(isinstance(step, Finished) for step in steps)
            if self._ended and self._answer.finished is None:
                data += _encoded(self._writer.fail(self._answer.error or INTERNAL))
            if not data and (first or anyio.current_time() >= due):
                data = KEEP_ALIVE
        return data

    def _events(self, step: AnswerStep | Finished) -> Iterable[Event]:
        return self._writer.finish(step) if isinstance(step, Finished) else self._writer.step(step)


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


def _encoded(events: Iterable[Event]) -> bytes:
    lines = []
    for event in events:
        if event.name is not None:
            lines.append(f"event: {event.name}\n")
        data = event.data
        text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False, separators=(",", ":"))
        lines.append(f"data: {text}\n\n")
    return "".join(lines).encode()
