"""OpenTelemetry spans, for a process that asked for them. Only making a `Tracing` imports OpenTelemetry.

The process's tracer provider exports them: that of ``opentelemetry-instrument``, of a program's own code, or
vLLM's. Without one, a span only hands its parent on.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from opentelemetry.context import Context
    from opentelemetry.trace import Span

Value = str | bool | int | float | list[str]
"""What an attribute may be. Never text of a prompt or an answer, and no error's message: it may quote one."""
NANOSECONDS = 1e9


class Tracing:
    """Makes spans.

    Raises:
        ConfigurationError: OpenTelemetry's API is not installed.
    """

    def __init__(self) -> None:
        try:
            from opentelemetry import context, propagate, trace
        except ImportError as error:
            raise ConfigurationError("tracing needs opentelemetry-api: pip install opentelemetry-api") from error
        self._context, self._propagate, self._trace = context, propagate, trace
        self._tracer = trace.get_tracer("pdd-device")

    @contextmanager
    def joined(self, headers: Mapping[str, str]) -> Iterator[None]:
        """Begin spans inside as children of the span that a request's `headers` name.

        Where a span of this process is current already, such as that of an HTTP server's instrumentation, it stays
        the parent.
        """
        if self._trace.get_current_span().get_span_context().is_valid:
            yield
            return
        token = self._context.attach(self._propagate.extract(headers))
        try:
            yield
        finally:
            self._context.detach(token)

    def begin(
        self,
        name: str,
        attributes: Mapping[str, Value],
        *,
        headers: Mapping[str, str] | None = None,
        parent: Span | None = None,
        start_ns: int | None = None,
        calls_out: bool = False,
    ) -> Span:
        """Return a span that has begun; `Span.end` ends it.

        Args:
            name: low in cardinality.
            attributes: what is known by now.
            headers: those of a request that name its parent; else `parent`, else the current span.
            parent: its parent, in this process.
            start_ns: nanoseconds since 1970; default now.
            calls_out: it is about a request to another process.
        """
        context: Context | None = None
        if headers is not None:
            context = self._propagate.extract(headers)
        elif parent is not None:
            context = self._trace.set_span_in_context(parent)
        above = self._trace.get_current_span(context).get_span_context()
        kind = self._trace.SpanKind.SERVER if above.is_remote else self._trace.SpanKind.INTERNAL
        if calls_out:
            kind = self._trace.SpanKind.CLIENT
        return self._tracer.start_span(name, context, kind, attributes, start_time=start_ns)

    @contextmanager
    def current(self, span: Span) -> Iterator[None]:
        """Make `span` the current one; what goes wrong inside is not written into it."""
        with self._trace.use_span(span, record_exception=False, set_status_on_exception=False):
            yield

    def headers(self, span: Span) -> dict[str, str]:
        """Return the headers by which a request names `span` as its parent, and what came with the parent's."""
        headers: dict[str, str] = {}
        self._propagate.inject(headers, self._trace.set_span_in_context(span))
        return headers

    def fail(self, span: Span, error: BaseException) -> None:
        """Mark `span` as failed, by the error's type alone."""
        span.set_attribute("error.type", type(error).__name__)
        span.set_status(self._trace.StatusCode.ERROR)


def filled(attributes: Mapping[str, Value | None]) -> dict[str, Value]:
    """Return those that have a value."""
    return {name: value for name, value in attributes.items() if value is not None}
