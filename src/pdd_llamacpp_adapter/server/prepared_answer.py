"""One answer between its route and its session: what goes in, what comes out step by step.

A route's body makes a `ChatInput` of its wire format, `prepare` makes a `PreparedAnswer` of that, and `answering`
runs it::

    prepared = await prepare_body(body, call)
    if streamed:
        return stream_answer(call, prepared, writer)    # an `EventWriter` of the route
    return await whole_answer(call, prepared, build)    # `build(transcript, finished)` makes the route's JSON
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from pdd_core.timeline import ShownToken
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.server.deltas import Delta
    from pdd_llamacpp_adapter.server.marked import MarkedPart
    from pdd_llamacpp_adapter.session.outcome import Outcome

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose tokens, and when to stop; defaults are OpenAI's. Bounds are checked by `AnswerRequest`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    """None: all that the context has room for."""
    min_tokens: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """Number of most likely tokens to return besides the chosen one's logprob; None returns no logprobs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatInput:
    """A chat to go on with, in the shapes of OpenAI's chat completions."""

    messages: Sequence[Json]
    """Roles system, user, assistant (with tool_calls) and tool; `content` is a string or None."""
    tools: Sequence[Json] = ()
    tool_choice: str | Json | None = None
    parallel_tool_calls: bool = True
    response_format: Json | None = None
    sampling: Sampling = field(default_factory=Sampling)
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    """Variables for the model's chat template, such as `enable_thinking`."""
    marked: Sequence[MarkedPart] = ()
    """Parts that stay when the prompt is refined."""


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


@dataclass(frozen=True, slots=True)
class AnswerStep:
    """One shown token and what it adds to the answer. The last step may have withheld text and no token."""

    deltas: Sequence[Delta]
    token: ShownToken | None


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of an answer."""

    outcome: Outcome
    finish_reason: str
    """``stop``, ``length`` or ``tool_calls``."""


@dataclass(frozen=True, slots=True)
class ErrorObject:
    """OpenAI's error object, and the HTTP status that goes with it."""

    status: int
    message: str
    type: str
    param: str | None = None
    code: str | int | None = None
    retry_after: float | None = None
    """Seconds until another try may succeed."""

    def body(self) -> Json:
        """Return ``{"error": {...}}``."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": error}


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
