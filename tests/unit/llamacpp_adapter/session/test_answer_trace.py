"""Traced answers. The engines are fakes; the requests to the cloud have the spans of the real client."""

from __future__ import annotations

import math
from contextlib import aclosing, suppress

import anyio
import httpx2
import pytest
from opentelemetry.trace import SpanKind, StatusCode
from spans import exporter, said, traceparent

from pdd_core.errors import CloudLost, CloudRefused, DeviceEngineFailed, PDDError
from pdd_core.patience import Patience
from pdd_core.planner.types import Verdict
from pdd_core.tracing import NANOSECONDS, Tracing
from pdd_llamacpp_adapter.cloud.cloud_part import TRACED, CloudPart
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.answer_session import AnswerSession

pytestmark = pytest.mark.anyio
URL = httpx2.URL("http://cloud.example:8000/v1/")
PARENT = {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}


@pytest.fixture
def cloud(fake_cloud):
    class TracedCloud(fake_cloud):
        """As `CloudClient.stream` does it."""

        headers = None

        async def stream(self, request, opt_in):
            with CloudPart(request, opt_in, model="m", url=URL) as part:
                self.headers = [*(self.headers or ()), part.headers]
                async with aclosing(super().stream(request, opt_in)) as chunks:
                    async for chunk in chunks:
                        part.end = chunk.end
                        yield chunk

    return TracedCloud


@pytest.fixture
def answer(policies):
    """Make an answer; return what is left of it, and its spans by name."""

    async def run(*, tracing=True, rate=math.inf, leave_after=None, fields=None, **options):
        exporter().clear()
        request = {"prompt_token_ids": list(range(1, 101)), "max_tokens": 10, "decode_budget": 64} | (fields or {})
        patience = Patience(retry_delay_s=0.01, late_s=math.inf)
        made = AnswerSession(
            AnswerRequest(**request), policies=policies, rate=rate, patience=patience,
            tracing=Tracing() if tracing else None, **options,
        )  # fmt: skip
        with Tracing().joined(PARENT), suppress(PDDError):
            async with made as session:
                async for token in session:
                    if token.index + 1 == leave_after:
                        break
        by_name = {}
        for span in exporter().get_finished_spans():
            by_name.setdefault(span.name, []).append(span)
        return made.outcome, by_name

    return run


def seconds(spans, time_ns):
    """Of the answer's clock."""
    return (time_ns - spans["pdd.answer"][0].start_time) / NANOSECONDS


async def test_a_handoff_is_one_span_with_both_parts_and_the_switch(answer, fake_engine, cloud):
    asked = cloud([0.1, [101], 0.1, [102, 103], CloudEnd.BUDGET])
    outcome, spans = await answer(engine=fake_engine(seconds=0.3), cloud=asked)
    [whole], [cloud_part], [device_part] = spans["pdd.answer"], spans["pdd.cloud_part"], spans["pdd.device_part"]
    assert f"{whole.parent.span_id:016x}" in PARENT["traceparent"]
    assert {f"{span.context.trace_id:032x}" in PARENT["traceparent"] for [span] in spans.values()} == {True}
    assert cloud_part.parent == device_part.parent == whole.context
    assert [span.kind for span in (whole, cloud_part, device_part)] == [
        SpanKind.SERVER, SpanKind.CLIENT, SpanKind.INTERNAL,
    ]  # fmt: skip
    assert asked.headers == [{"traceparent": traceparent(cloud_part)}]

    said_of = whole.attributes
    assert said_of["gen_ai.response.finish_reasons"] == ("length",)
    assert (said_of["gen_ai.usage.input_tokens"], said_of["gen_ai.usage.output_tokens"]) == (100, 10)
    assert (said_of["pdd.mode"], said_of["pdd.cloud_tokens"], said_of["pdd.device_tokens"]) == ("handoff", 3, 7)
    assert said_of["pdd.decode_budget"] == cloud_part.attributes["pdd.decode_budget"] == 64
    assert (cloud_part.attributes["pdd.end"], cloud_part.attributes["gen_ai.usage.output_tokens"]) == ("budget", 3)
    assert (cloud_part.attributes["server.address"], cloud_part.attributes["server.port"]) == (
        "cloud.example",
        8000,
    )
    assert device_part.attributes["gen_ai.usage.output_tokens"] == 7

    events = {event.name: event for span in (whole, cloud_part, device_part) for event in span.events}
    assert seconds(spans, events["pdd.switch"].timestamp) == pytest.approx(outcome.took_over_at, abs=1e-5)
    assert events["pdd.switch"].attributes["pdd.cloud_tokens"] == 3
    assert seconds(spans, events["pdd.caught_up"].timestamp) == pytest.approx(outcome.caught_up_at, abs=1e-5)
    first = outcome.timeline.tokens[0].received_at
    assert seconds(spans, events["pdd.first_token"].timestamp) == pytest.approx(first, abs=1e-5)
    assert "the device took over" in [event.attributes.get("pdd.decision") for event in whole.events]
    assert whole.start_time == device_part.start_time <= cloud_part.start_time
    assert cloud_part.end_time < device_part.end_time <= whole.end_time


async def test_each_leg_has_a_span_with_the_tokens_that_it_brought(answer, fake_engine, cloud):
    later = [[0.1, [104], [105], 0.1, CloudEnd.BUDGET], [0.1, "goes on"]]
    asked = cloud([[101], [102, 103], 0.2, CloudLost("it broke off: <104>")], later=later)
    _, spans = await answer(
        engine=fake_engine(fails_at=0), cloud=asked, fields={"max_tokens": 12, "decode_budget": 5}
    )
    legs = spans["pdd.cloud_part"]
    assert [leg.attributes["gen_ai.usage.output_tokens"] for leg in legs] == [3, 2, 7]
    assert [leg.attributes["pdd.end"] for leg in legs] == ["lost", "budget", "length"]
    assert [leg.status.status_code for leg in legs] == [StatusCode.ERROR, StatusCode.UNSET, StatusCode.UNSET]
    assert legs[0].attributes["error.type"] == "CloudLost"
    assert len({headers["traceparent"] for headers in asked.headers}) == 3


async def test_an_answer_of_the_device_alone_has_no_cloud_part(answer, fake_engine):
    _, spans = await answer(engine=fake_engine())
    assert set(spans) == {"pdd.answer", "pdd.device_part"}
    assert spans["pdd.answer"][0].attributes["pdd.mode"] == "device_only"


async def test_an_answer_of_the_cloud_alone_has_no_device_part(answer, fake_engine, cloud):
    _, spans = await answer(
        engine=fake_engine(), cloud=cloud([[101], ([102], CloudEnd.STOP)]), verdict=Verdict.CLOUD_ONLY
    )
    assert set(spans) == {"pdd.answer", "pdd.cloud_part"}
    assert spans["pdd.cloud_part"][0].attributes["pdd.opted_in"] is False


async def test_the_device_part_of_an_answer_that_the_cloud_lost_begins_then(answer, fake_engine, cloud):
    asked = cloud([[101], 0.5, CloudLost("gone")])
    _, spans = await answer(engine=fake_engine(), cloud=asked, verdict=Verdict.CLOUD_ONLY)
    [cloud_part], [device_part] = spans["pdd.cloud_part"], spans["pdd.device_part"]
    assert device_part.start_time == cloud_part.end_time


async def test_a_client_that_leaves_ends_all_spans(answer, fake_engine, cloud):
    _, spans = await answer(engine=fake_engine(), cloud=cloud([[101], 60, [102]]), rate=1.0, leave_after=1)
    assert spans["pdd.answer"][0].attributes["gen_ai.response.finish_reasons"] == ("cancelled",)
    assert spans["pdd.answer"][0].status.status_code is StatusCode.UNSET
    assert spans["pdd.cloud_part"][0].attributes["pdd.end"] == "closed"


async def test_an_answer_that_nobody_can_finish_has_failed(answer, fake_engine, cloud):
    asked = cloud([CloudRefused("no such <101>", status=400)])
    _, spans = await answer(engine=fake_engine(fails_at=0), cloud=asked)
    [whole] = spans["pdd.answer"]
    assert (whole.status.status_code, whole.status.description) == (StatusCode.ERROR, None)
    assert (whole.attributes["error.type"], whole.attributes["pdd.cloud_error"]) == (
        "CloudRefused",
        "CloudRefused",
    )


@pytest.mark.parametrize("script", [
    [[101], [102, 103], CloudEnd.BUDGET],
    [[101], CloudLost("the stream broke off: <102> is SECRET")],
    [CloudRefused("this prompt is SECRET: <1> <2>", status=400, code="SECRET")],
    [[101], ([102], CloudEnd.STOP)],
])  # fmt: skip
@pytest.mark.parametrize("fails_at", [None, 0, 3])
async def test_no_span_says_a_word_of_prompt_or_answer(answer, fake_engine, cloud, script, fails_at):
    class Engine(fake_engine):
        async def extend(self, ids, *, want_logits=False):
            try:
                return await super().extend(ids, want_logits=want_logits)
            except DeviceEngineFailed as error:
                raise DeviceEngineFailed("SECRET") from error

    fields = {"stop": ["SECRET", "<105>"], "bad_words": ["SECRET"], "cache_salt": "SECRET"}
    outcome, spans = await answer(engine=Engine(fails_at=fails_at), cloud=cloud(script), fields=fields)
    words = [word for found in spans.values() for word in said(found)]
    assert words, "there is something to search"
    assert not [word for word in words if "SECRET" in word or "<" in word]
    assert not outcome.handoff_id or outcome.handoff_id not in words, "with the id the state can be read"


async def test_an_answer_that_is_not_traced_makes_no_span(answer, fake_engine, cloud):
    asked = cloud([[101], [102, 103], CloudEnd.BUDGET])
    _, spans = await answer(tracing=False, engine=fake_engine(), cloud=asked)
    assert spans == {}
    assert asked.headers == [None]
    assert TRACED.get() is None


async def test_answers_at_a_time_keep_their_spans_apart(answer, fake_engine, cloud):
    asked = [cloud([0.1, [101], 0.1, [102, 103], CloudEnd.BUDGET]) for _ in range(3)]

    async def one(of):
        await answer(engine=fake_engine(seconds=0.1), cloud=of)

    async with anyio.create_task_group() as tasks:
        for of in asked:
            tasks.start_soon(one, of)
    spans = exporter().get_finished_spans()
    wholes = {span.context.span_id for span in spans if span.name == "pdd.answer"}
    parents = {span.parent.span_id for span in spans if span.name == "pdd.cloud_part"}
    assert len(wholes) == 3
    assert parents == wholes
