"""The span of one request to the cloud, if its answer is traced."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from pdd_core.errors import PDDError
from pdd_core.tracing import filled

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from httpx2 import URL
    from opentelemetry.trace import Span

    from pdd_core.optin import OptIn
    from pdd_core.tracing import Tracing
    from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
    from pdd_llamacpp_adapter.request import AnswerRequest


@dataclass(slots=True)
class TracedAnswer:
    """An answer that is traced: the parent of what is asked of the cloud for it."""

    tracing: Tracing
    span: Span
    now: Callable[[], float]
    """Seconds since the answer began."""
    ns: Callable[[float], int]
    """Such a time in nanoseconds since 1970."""
    cloud_parts: list[CloudPart] = field(default_factory=list)
    """In the order in which they began."""


TRACED: ContextVar[TracedAnswer | None] = ContextVar("TRACED", default=None)
"""The answer that the running task works for; None where it is not traced."""


class CloudPart:
    """A context manager around one request. Nothing is done, and nothing imported, where no answer is traced.

    The span stays open until `finish`, since only the answer knows which of the tokens became part of it.
    """

    def __init__(self, request: AnswerRequest, opt_in: OptIn | None, *, model: str, url: URL) -> None:
        self.headers: dict[str, str] | None = None
        """What the request is to be sent with."""
        self.end: CloudEnd | None = None
        """How it came to its regular end; to be set."""
        self.began_at = 0.0
        """Seconds since the answer began."""
        self.ended_at: float | None = None
        self._error: PDDError | None = None
        self._answer = TRACED.get()
        if self._answer is None:
            return
        budget = None if opt_in is None else opt_in.decode_budget
        self.began_at = self._answer.now()
        self._span = self._answer.tracing.begin(
            "pdd.cloud_part",
            filled(
                {
                    "gen_ai.operation.name": "text_completion",
                    "gen_ai.provider.name": "vllm",
                    "gen_ai.request.model": model,
                    "gen_ai.request.max_tokens": request.max_tokens,
                    "gen_ai.usage.input_tokens": len(request.prompt_token_ids),
                    "server.address": url.host,
                    "server.port": url.port,
                    "pdd.opted_in": opt_in is not None,
                    "pdd.decode_budget": budget,
                    "pdd.extends": None if opt_in is None else opt_in.extends is not None,
                }
            ),
            parent=self._answer.span,
            start_ns=self._answer.ns(self.began_at),
            calls_out=True,
        )
        self.headers = self._answer.tracing.headers(self._span)
        self._answer.cloud_parts.append(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._answer is not None:
            self.ended_at = self._answer.now()
            self._error = error if isinstance(error, PDDError) else None

    def finish(self, came_at: list[float]) -> None:
        """End the span, as of when the request ended.

        `came_at` has the time of each of its tokens that is part of the answer.
        """
        answer = self._answer
        if answer is None:
            return
        span, how = self._span, self.end or ("closed" if self._error is None else "lost")
        span.set_attributes({"gen_ai.usage.output_tokens": len(came_at), "pdd.end": str(how)})
        if came_at:
            span.add_event("pdd.first_token", timestamp=answer.ns(came_at[0]))
        if self._error is not None:
            answer.tracing.fail(span, self._error)
        span.end(answer.ns(answer.now() if self.ended_at is None else self.ended_at))
