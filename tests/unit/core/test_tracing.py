import subprocess
import sys

import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind
from spans import exporter, traceparent

from pdd_core.errors import ConfigurationError
from pdd_core.tracing import Tracing

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01", "tracestate": "vendor=1"}


@pytest.fixture
def tracing():
    exporter().clear()
    return Tracing()


def ended():
    return exporter().get_finished_spans()


def test_a_span_is_a_child_of_the_one_that_a_requests_headers_name(tracing):
    with tracing.joined(HEADERS):
        tracing.begin("inside", {"n": 1}).end()
    tracing.begin("given", {}, headers=HEADERS).end()
    for span in ended():
        assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
        assert span.kind is SpanKind.SERVER
    assert ended()[0].attributes == {"n": 1}
    assert not trace.get_current_span().get_span_context().is_valid, "nothing stays behind"


@pytest.mark.parametrize("headers", [{}, {"traceparent": "00-zz-1-01"}, {"traceparent": "x" * 5000}])
def test_headers_that_name_no_span_begin_a_trace(tracing, headers):
    with tracing.joined(headers):
        tracing.begin("inside", {}).end()
    [span] = ended()
    assert span.parent is None
    assert span.kind is SpanKind.INTERNAL


def test_a_span_of_this_process_stays_the_parent(tracing):
    outer = tracing.begin("an HTTP server's", {})
    with tracing.current(outer), tracing.joined(HEADERS):
        tracing.begin("inside", {}).end()
    [span] = ended()
    assert span.parent == outer.get_span_context()
    assert span.kind is SpanKind.INTERNAL


def test_headers_carry_the_span_and_what_came_with_its_parent(tracing):
    with tracing.joined(HEADERS):
        span = tracing.begin("calls", {}, calls_out=True)
    assert tracing.headers(span) == {"traceparent": traceparent(span), "tracestate": "vendor=1"}
    span.end()
    assert ended()[0].kind is SpanKind.CLIENT


def test_an_error_is_there_by_its_type_alone(tracing):
    span = tracing.begin("fails", {})
    tracing.fail(span, ConfigurationError("secret words"))
    span.end()
    [span] = ended()
    assert span.attributes == {"error.type": "ConfigurationError"}
    assert (span.status.status_code, span.status.description) == (trace.StatusCode.ERROR, None)
    assert span.events == ()


def test_what_goes_wrong_while_a_span_is_current_is_not_written_into_it(tracing):
    span = tracing.begin("outer", {})
    with pytest.raises(ValueError, match="secret"), tracing.current(span):
        raise ValueError("secret words")
    span.end()
    assert (ended()[0].events, ended()[0].status.is_ok) == ((), True)


def test_what_is_not_installed_is_a_setting_that_cannot_work(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match="pip install opentelemetry-api"):
        Tracing()


def test_nothing_of_opentelemetry_is_imported_where_it_is_off():
    modules = (
        "pdd_core.tracing",
        "pdd_llamacpp_adapter.cloud.cloud_client",
        "pdd_llamacpp_adapter.server.app",
        "pdd_llamacpp_adapter.session.answer_session",
        "pdd_vllm_plugin.generate_recorder",
    )
    code = f"import sys, {', '.join(modules)}; print([name for name in sys.modules if 'opentelemetry' in name])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
