import subprocess
import sys
from types import SimpleNamespace

import pytest
from opentelemetry.trace import SpanKind
from prometheus_client import CollectorRegistry
from spans import exporter, said
from vllm_fakes import FakeEngine, output, sampling_params

from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.generate_recorder import GenerateRecorder
from pdd_vllm_plugin.handoff_spans import HandoffSpans
from pdd_vllm_plugin.handoff_store import HandoffStore
from pdd_vllm_plugin.metrics import CloudMetrics

pytestmark = pytest.mark.anyio
ID = "a" * 32
OPT_IN = {"pdd_handoff": ID, "pdd_decode_budget": 2}
REPORT = {"pdd": {"engine": 0, "tokens": 2, "set_by": "client"}}
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
HEADERS = {"traceparent": f"00-{TRACE}-{PARENT}-01"}


def vllm_config(endpoint):
    return SimpleNamespace(observability_config=SimpleNamespace(otlp_traces_endpoint=endpoint))


@pytest.fixture
def recorder():
    exporter().clear()

    def over(*outputs):
        store, metrics = HandoffStore(PDDConfig()), CloudMetrics(CollectorRegistry())
        spans = HandoffSpans.of(vllm_config("http://127.0.0.1:4317"))
        made = FakeEngine(list(outputs))
        return made, GenerateRecorder(made, store, model="m", tokenizer="d", metrics=metrics, spans=spans)

    return over


async def test_an_opted_in_request_has_a_span_below_that_of_its_device(recorder):
    engine, made = recorder(
        output([7], "SECRET"), output([8], "SECRET"), output([], "", "length", "pdd_handoff", kv=dict(REPORT))
    )
    prompt = {"prompt_token_ids": [1, 2, 3]}
    async for _ in made.generate(prompt, sampling_params(OPT_IN), "cmpl-1-0", trace_headers=HEADERS):
        assert exporter().get_finished_spans() == ()
    [span] = exporter().get_finished_spans()
    assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE, PARENT)
    assert (span.name, span.kind) == ("pdd.handoff", SpanKind.SERVER)
    assert dict(span.attributes) == {
        "gen_ai.request.id": "cmpl-1",
        "gen_ai.response.model": "m",
        "gen_ai.usage.input_tokens": 3,
        "gen_ai.usage.output_tokens": 2,
        "gen_ai.response.finish_reasons": ("length",),
        "pdd.asked.decode_budget": 2,
        "pdd.extends": False,
        "pdd.decode_budget": 2,
        "pdd.set_by": "client",
        "pdd.status": "handed_off",
        "pdd.refined.reason": "not_requested",
    }
    assert engine.calls[0][1] == {"trace_headers": HEADERS}, "vLLM's own span has the same parent"


async def test_without_headers_it_begins_a_trace(recorder):
    _, made = recorder(output([7], finish_reason="stop"))
    async for _ in made.generate({}, sampling_params(OPT_IN), "cmpl-1-0", trace_headers=None):
        pass
    [span] = exporter().get_finished_spans()
    assert span.parent is None


async def test_a_request_that_is_given_up_has_one_too(recorder):
    _, made = recorder(output([7]), output([8]))
    generator = made.generate({}, sampling_params(OPT_IN), "cmpl-1-0", trace_headers=HEADERS)
    await anext(generator)
    await generator.aclose()
    [span] = exporter().get_finished_spans()
    assert (span.attributes["pdd.status"], span.attributes["gen_ai.usage.output_tokens"]) == ("aborted", 1)


async def test_it_says_no_word_of_the_answer_and_not_the_handoffs_id(recorder):
    _, made = recorder(output([7], "SECRET"), output([8], "SECRET", "stop", "SECRET"))
    params = sampling_params(OPT_IN, stop=["SECRET"])
    async for _ in made.generate({}, params, "cmpl-1-0", trace_headers=HEADERS):
        pass
    words = said(exporter().get_finished_spans())
    assert not [word for word in words if "SECRET" in word or ID in word]


async def test_a_request_without_opt_in_has_none(recorder):
    _, made = recorder(output([7], finish_reason="stop"))
    async for _ in made.generate({}, sampling_params(), "cmpl-1-0", trace_headers=HEADERS):
        pass
    assert exporter().get_finished_spans() == ()


def test_it_is_off_where_vllm_does_not_trace():
    assert HandoffSpans.of(vllm_config(None)) is None
    assert HandoffSpans.of(SimpleNamespace()) is None


def test_where_it_is_off_nothing_of_opentelemetry_is_imported():
    code = (
        "import sys; from pdd_vllm_plugin.handoff_spans import HandoffSpans; HandoffSpans.of(None)\n"
        "print([name for name in sys.modules if 'opentelemetry' in name])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
