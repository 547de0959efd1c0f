"""The spans that this process made, in memory."""

from functools import cache

from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter


@cache
def exporter():
    """The one of this process: OpenTelemetry takes one tracer provider, once."""
    made = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(made))
    trace.set_tracer_provider(provider)
    return made


def said(spans):
    """All that spans say in words, for a search."""
    words = []
    for span in spans:
        words += [span.name, span.status.description or "", *map(str, span.attributes.values())]
        for event in span.events:
            words += [event.name, *map(str, event.attributes.values())]
    return words


def traceparent(span):
    """The header that names it."""
    return f"00-{span.context.trace_id:032x}-{span.context.span_id:016x}-{span.context.trace_flags:02x}"
