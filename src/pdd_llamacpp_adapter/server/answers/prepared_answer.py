"""One answer between its route and its session: what goes in, what comes out step by step.

A route's body makes a `ChatInput` of its wire format, `prepare` makes a `PreparedAnswer` of that, and `answering`
runs it::

    prepared = await prepare_body(body, call)
    if streamed:
        return stream_answer(call, prepared, writer)    # an `EventWriter` of the route
    return await whole_answer(call, prepared, build)    # `build(transcript, finished)` makes the route's JSON
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.server.output.deltas import Delta
    from pdd_llamacpp_adapter.server.wire.failures import ErrorObject
    from pdd_llamacpp_adapter.server.wire.json_body import Json
    from pdd_llamacpp_adapter.session.outcome import Outcome


class OutputParser(Protocol):
    """Splits one answer's text into what it is: words for the user, thoughts, tool calls."""

    @property
    def made_tool_calls(self) -> bool:
        """Whether there was a tool call, none of them cut off; the finish reason is then ``tool_calls``."""

    def push(self, text: str) -> list[Delta]:
        """Return what `text`, the next piece of the answer, turns out to be. Text may be held back."""

    def finish(self) -> list[Delta]:
        """Return what was held back. Called once, after the last `push`."""


@dataclass(frozen=True, slots=True)
class PreparedAnswer:
    """One prepared answer."""

    request: AnswerRequest
    parser: OutputParser
    only_calls: bool = False
    """The answer is nothing but tool calls, unless it is cut off."""


@dataclass(frozen=True, slots=True)
class AnswerStep:
    """One shown token and what it adds to the answer. The last step may have withheld text and no token."""

    deltas: Sequence[Delta]
    token: ShownToken | None
    received_at: Sequence[float] = ()
    """When each token was received that there is by now, shown or not: seconds since the request began."""


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer."""

    outcome: Outcome
    finish_reason: str
    """``stop``, ``length`` or ``tool_calls``."""


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event. `data` is JSON-encoded unless it is a string."""

    data: Json | str
    name: str | None = None
    """The ``event:`` line; none in chat completions, the event's type in responses."""


class EventWriter(Protocol):
    """Writes one streamed answer in a route's own events. Called in this order: begin, step..., finish or fail."""

    def begin(self) -> Iterable[Event]:
        """Return what comes before the first step. Nothing has been sent yet."""

    def step(self, step: AnswerStep) -> Iterable[Event]:
        """Return what `step` adds; may be nothing."""

    def finish(self, finished: Finished) -> Iterable[Event]:
        """Return the end of a complete answer."""

    def fail(self, error: ErrorObject) -> Iterable[Event]:
        """Return the end of an answer that nobody could go on with, after it had begun."""
