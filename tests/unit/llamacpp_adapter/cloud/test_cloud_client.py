from __future__ import annotations

import json
from contextlib import nullcontext, suppress

import anyio
import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spans import exporter, traceparent

from pdd_core.errors import CloudLost, CloudRefused, CloudUnreachable, SchemaVersionError, TokenizerMismatch
from pdd_core.fingerprint import fingerprint
from pdd_core.optin import OptIn
from pdd_core.tracing import Tracing
from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
from pdd_llamacpp_adapter.cloud.cloud_monitor import CloudMonitor, Connection
from pdd_llamacpp_adapter.cloud.cloud_part import TRACED, TracedAnswer
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd, read_stream
from pdd_llamacpp_adapter.request import AnswerRequest

pytestmark = pytest.mark.anyio

TABLE = [b"tok%d" % i for i in range(3000)]
SPECIAL = (0, 2)
OPT_IN = OptIn("0123456789abcdef0123", 24)
REQUEST = AnswerRequest(prompt_token_ids=[5, 6, 7], max_tokens=50, stop_token_ids=[9], seed=4, cache_salt="salt")
COMPLETIONS = ("POST", "/completions")


def info(table=TABLE, *, schema_version="2.0", eos_ids=(2,), special_ids=SPECIAL):
    return {
        "schema_version": schema_version,
        "plugin_version": "0.1.0",
        "engine": "vllm 0.32.0",
        "model": "smol",
        "max_model_len": 2048,
        "tokenizer": json.loads(fingerprint(table, special_ids=special_ids, eos_ids=eos_ids).model_dump_json()),
        "features": ["decode_budget"],
        "refinement": "off",
        "limits": {"max_decode_budget": 256, "max_handoffs": 64, "ttl_s": 60.0, "cancel_timeout_s": 3.0},
        "from_the_future": True,
    }


class Vocabulary:
    eos_id = 2

    def __init__(self, token_bytes=TABLE, special=SPECIAL):
        self.token_bytes = token_bytes
        self._special = special

    def is_special(self, token_id):
        return token_id in self._special


@pytest.fixture
def stream(serve):
    """Stream REQUEST from a server that sends `pieces`; returns the chunks and the server."""

    async def run(pieces, opt_in=OPT_IN, request=REQUEST):
        answer = pieces if isinstance(pieces, tuple) else (200, pieces)
        server = await serve({COMPLETIONS: answer})
        chunks = []
        async with CloudClient(server.url, model="smol") as cloud:
            run.server, run.chunks = server, chunks
            async for chunk in cloud.stream(request, opt_in):
                chunks.append(chunk)  # noqa: PERF401 - kept when the stream raises
        return chunks

    return run


async def test_a_request_carries_ids_sampling_and_opt_in(stream, sse):
    await stream([sse.chunk([1], finish="stop"), sse.DONE])
    [(method, path, body)] = stream.server.requests
    assert (method, path) == ("POST", "/v1/completions")
    assert body == {
        "model": "smol",
        "prompt": [5, 6, 7],
        "stream": True,
        "max_tokens": 50,
        "temperature": 0.0,
        "top_p": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        "seed": 4,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "min_tokens": 0,
        "stop_token_ids": [9],
        "return_token_ids": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        "vllm_xargs": {"pdd_handoff": OPT_IN.handoff_id, "pdd_decode_budget": 24},
        "cache_salt": "salt",
    }


async def test_a_traced_answers_request_names_its_span(stream, sse):
    exporter().clear()
    tracing = Tracing()
    traced = TracedAnswer(tracing, tracing.begin("answer", {}), now=lambda: 0.0, ns=int)
    token = TRACED.set(traced)
    try:
        await stream([sse.chunk([1]), sse.chunk([2], finish="length", stop="pdd_handoff"), sse.DONE])
    finally:
        TRACED.reset(token)
    [part] = traced.cloud_parts
    part.finish([0.0, 0.0])
    [span] = exporter().get_finished_spans()
    assert stream.server.headers[0]["traceparent"] == traceparent(span)
    assert span.attributes["pdd.end"] == "budget"
    assert span.attributes["gen_ai.request.model"] == "smol"
    assert span.attributes["server.address"] == "127.0.0.1"


async def test_an_answer_that_is_not_traced_names_none(stream, sse):
    await stream([sse.chunk([1], finish="stop"), sse.DONE])
    assert not {"traceparent", "baggage"} & set(stream.server.headers[0])


async def test_without_opt_in_it_is_a_plain_request(stream, sse):
    request = AnswerRequest(prompt_token_ids=[5], max_tokens=5)
    await stream([sse.chunk([1], finish="stop")], opt_in=None, request=request)
    assert {"vllm_xargs", "cache_salt", "seed"}.isdisjoint(stream.server.requests[0][2])


async def test_chunks_hold_any_number_of_ids(stream, sse):
    pieces = [sse.chunk([1]), b": keep-alive\n\n", sse.chunk([2, 3, 4]), sse.chunk([], text="")]
    pieces.append(sse.chunk([5], finish="stop"))
    usage = sse.event({"id": "x", "object": "text_completion", "created": 1, "model": "m", "choices": []})
    chunks = await stream([*pieces, usage, sse.DONE])
    assert [chunk.token_ids for chunk in chunks] == [(1,), (2, 3, 4), (5,)]
    assert [chunk.end for chunk in chunks] == [None, None, CloudEnd.STOP]


@pytest.mark.parametrize(
    ("finish", "stop", "end"),
    [
        ("length", "pdd_handoff", CloudEnd.BUDGET),
        ("length", None, CloudEnd.LENGTH),
        ("stop", None, CloudEnd.STOP),
        ("stop", 9, CloudEnd.STOP),
    ],
)
async def test_the_end_says_why(stream, sse, finish, stop, end):
    chunks = await stream([sse.chunk([1]), sse.chunk([2], finish=finish, stop=stop), sse.DONE])
    assert chunks[-1].end is end


@pytest.mark.parametrize(
    ("told", "max_tokens", "opt_in", "end"),
    [
        ({}, 50, OPT_IN, CloudEnd.BUDGET),
        ({}, 2, OPT_IN, CloudEnd.LENGTH),
        ({"max_model_len": 5}, 50, OPT_IN, CloudEnd.LENGTH),
        ({"max_model_len": 6}, 50, OPT_IN, CloudEnd.BUDGET),
        ({"default_sampling_params": {"max_tokens": 2}}, 50, OPT_IN, CloudEnd.LENGTH),
        ({}, 50, None, CloudEnd.LENGTH),
    ],
)
async def test_a_budget_that_ended_is_known_though_a_gateway_leaves_out_why(
    serve, sse, told, max_tokens, opt_in, end
):
    pieces = [sse.chunk([1]), sse.chunk([2], finish="length", stop=None), sse.DONE]
    server = await serve({("GET", "/pdd/info"): (200, {**info(), **told}), COMPLETIONS: (200, pieces)})
    request = AnswerRequest(prompt_token_ids=[5, 6, 7], max_tokens=max_tokens)
    async with CloudClient(server.url) as cloud:
        await cloud.connect()
        chunks = [chunk async for chunk in cloud.stream(request, opt_in)]
    assert [chunk.end for chunk in chunks] == [None, end]


async def test_a_stream_without_a_finish_reason_is_lost(stream, sse):
    with pytest.raises(CloudLost, match="without a finish reason"):
        await stream([sse.chunk([1]), sse.DONE])
    assert [chunk.token_ids for chunk in stream.chunks] == [(1,)]


async def test_a_stream_of_nothing_but_its_end_is_lost(stream, sse):
    with pytest.raises(CloudLost, match="without a finish reason"):
        await stream([sse.DONE])


async def test_an_aborted_stream_is_lost(stream, sse):
    with pytest.raises(CloudLost, match="abort"):
        await stream([sse.chunk([1]), sse.chunk([], text="", finish="abort"), sse.DONE])


async def test_a_broken_connection_is_lost(stream, sse):
    with pytest.raises(CloudLost):
        await stream([sse.chunk([1]), sse.BREAK])
    assert [chunk.token_ids for chunk in stream.chunks] == [(1,)]


async def test_an_event_cut_short_is_lost(stream, sse):
    with pytest.raises(CloudLost):
        await stream([sse.chunk([1]), sse.chunk([2])[:40] + b"\n\n", sse.DONE])
    assert [chunk.token_ids for chunk in stream.chunks] == [(1,)]


async def test_an_engine_that_dies_is_lost(stream, sse):
    error = {"error": {"message": "EngineCore encountered an issue", "type": "InternalServerError", "code": 500}}
    with pytest.raises(CloudLost, match="EngineCore"):
        await stream([sse.chunk([1]), sse.event(error), sse.DONE])


async def test_a_refusal_inside_a_stream_is_a_refusal(stream, sse):
    error = {"error": {"message": "bad logit_bias", "type": "BadRequestError", "code": 400}}
    with pytest.raises(CloudRefused, match="logit_bias"):
        await stream([sse.event(error), sse.DONE])


async def test_text_without_ids_is_refused(stream, sse):
    with pytest.raises(CloudRefused, match=r"a gateway in between .* return_token_ids"):
        await stream([sse.chunk(None)])


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_an_error_answer_is_a_refusal(stream, status):
    with pytest.raises(CloudRefused, match="pdd_decode_budget must be") as caught:
        await stream((status, {"error": {"message": "pdd_decode_budget must be ...", "code": status}}))
    assert caught.value.status == status


async def test_a_wrong_key_is_told_as_one(stream):
    with pytest.raises(CloudRefused, match=r"Unauthorized \(HTTP 401\)"):
        await stream((401, {"error": "Unauthorized"}))


async def test_an_opted_in_request_is_sent_once(stream):
    with pytest.raises(CloudRefused):
        await stream((503, {"error": {"message": "busy"}}))
    assert len(stream.server.requests) == 1


async def test_a_port_without_a_server_is_unreachable(serve, sse):
    async with CloudClient("http://127.0.0.1:9/v1", model="smol") as cloud:
        with pytest.raises(CloudUnreachable, match=r"127\.0\.0\.1:9"):
            await anext(cloud.stream(REQUEST, OPT_IN))
        with pytest.raises(CloudUnreachable):
            await cloud.cancel(OPT_IN.handoff_id)
        with pytest.raises(CloudUnreachable):
            await cloud.connected(Vocabulary())


async def test_a_stream_can_be_left_in_the_middle(serve, sse):
    server = await serve({COMPLETIONS: (200, [sse.chunk([1]), sse.WAIT])})
    async with CloudClient(server.url, model="smol") as cloud:
        chunks = cloud.stream(REQUEST, OPT_IN)
        with anyio.fail_after(60):
            assert (await anext(chunks)).token_ids == (1,)
            await chunks.aclose()


async def test_the_served_model_is_asked_for(serve, sse):
    server = await serve(
        {("GET", "/models"): (200, models("served")), COMPLETIONS: (200, [sse.chunk([1], finish="stop")])}
    )
    async with CloudClient(server.url) as cloud:
        assert [chunk.token_ids async for chunk in cloud.stream(REQUEST, None)] == [(1,)]
    assert server.requests[-1][2]["model"] == "served"


def models(name):
    return {"object": "list", "data": [{"id": name, "object": "model", "created": 1, "owned_by": "vllm"}]}


@pytest.mark.parametrize("way", ["routes", "post"])
async def test_a_cloud_under_another_name_is_asked_by_that(serve, sse, way):
    """Behind a router that lets only POSTs through, the old name leads nowhere at all."""
    served = "before"

    def answer(body):
        if body["model"] != served:
            return 404, {"error": {"message": "no such model", "code": 404}}
        if body["prompt"] == "":
            return 200, {**info(), "model": served}
        return 200, [sse.chunk([1], finish="stop")]

    server = await serve({COMPLETIONS: answer})
    kept = {("GET", "/v1/models"): (200, models(served))}
    if way == "routes":
        kept["GET", "/v1/pdd/info"] = (200, {**info(), "model": served})
    server.answers |= kept
    async with CloudClient(server.url) as cloud:
        await cloud.connect(Vocabulary())
        assert [chunk.token_ids async for chunk in cloud.stream(REQUEST, None)] == [(1,)]
        served = "after"
        server.answers["GET", "/v1/models"] = (200, models(served))
        if way == "routes":
            server.answers["GET", "/v1/pdd/info"] = (200, {**info(), "model": served})
        with pytest.raises(CloudRefused, match="no such model"):
            await anext(cloud.stream(REQUEST, None))
        monitor = CloudMonitor(cloud, Vocabulary())
        monitor.connection = Connection.CONNECTED
        monitor.suspect(CloudRefused("no such model", status=404))
        for _ in range(2):
            await monitor._look(cloud)
        assert monitor.connection is Connection.CONNECTED
        sse.count = 0
        assert [chunk.token_ids async for chunk in cloud.stream(REQUEST, None)] == [(1,)]
    assert cloud.info.model == "after"


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("7", 7.0), ("0.5", 0.5), ("Thu, 01 Jan 2150 00:00:00 GMT", pytest.approx(3.9e9, rel=1)), ("0", None)]
    + [(strange, None) for strange in ("", "-3", "nan", "inf", "soon", "Thu, 01 Jan 1970 00:00:00 GMT")],
)
async def test_a_refusal_says_when_to_come_back(serve, header, seconds):
    server = await serve({COMPLETIONS: (429, {"error": {"message": "busy"}}, f"Retry-After: {header}")})
    async with CloudClient(server.url, model="smol") as cloud:
        with pytest.raises(CloudRefused, match="busy") as caught:
            await anext(cloud.stream(REQUEST, None))
    assert caught.value.retry_after == seconds
    assert len(server.requests) == 1, "whether to ask again is the answer's to decide"


@pytest.mark.parametrize("path", ["/completions", "/pdd/info"])
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_a_prompt_does_not_follow_to_another_address(serve, sse, path, status):
    elsewhere = await serve({COMPLETIONS: (200, [sse.chunk([1], finish="stop")])})
    moved = (status, {}, f"Location: {elsewhere.url}{path}")
    server = await serve({COMPLETIONS: moved, ("GET", "/pdd/info"): moved})
    async with CloudClient(server.url, model="smol") as cloud:
        with pytest.raises(CloudRefused, match="redirects to another address"):
            await (anext(cloud.stream(REQUEST, OPT_IN)) if path == "/completions" else cloud.connect(retries=0))
    assert elsewhere.requests == []


def state(**changes):
    fields = {
        "handoff_id": OPT_IN.handoff_id,
        "request_id": "cmpl-1",
        "model": "smol",
        "tokenizer": "digest",
        "created": 1.0,
        "expires": 2.0,
        "status": "running",
        "prompt_token_ids": [5, 6, 7],
        "output_token_ids": [1],
        "sampling_params": {},
        "refinement": {
            "kind": "refined",
            "method": "attention",
            "ratio": 0.5,
            "kept_indices": [0, 2],
            "kept_token_ids": [5, 7],
            "protected": [[2, 3]],
            "window": 16,
            "layers": [3],
        },
    }
    return {**fields, **changes}


async def test_the_state_of_a_handoff_is_read(serve):
    server = await serve({("GET", f"/pdd/handoffs/{OPT_IN.handoff_id}?wait=2.5"): (200, state())})
    async with CloudClient(server.url) as cloud:
        found = await cloud.handoff(OPT_IN.handoff_id, wait=2.5)
    assert found.refinement.kept_indices == [0, 2]
    assert found.refinement.protected == [(2, 3)]


async def test_a_state_that_is_gone_is_a_refusal_and_asked_for_once(serve):
    server = await serve({})
    async with CloudClient(server.url) as cloud:
        with pytest.raises(CloudRefused) as caught:
            await cloud.handoff(OPT_IN.handoff_id)
    assert caught.value.status == 404
    assert len(server.requests) == 1


@pytest.mark.parametrize("changes", [{"refinement": {"kind": "refined"}}, {"refinement": {"kind": "other"}}])
async def test_a_state_that_cannot_be_read_is_a_refusal(serve, changes):
    server = await serve({("GET", f"/pdd/handoffs/{OPT_IN.handoff_id}?wait=0"): (200, state(**changes))})
    async with CloudClient(server.url) as cloud:
        with pytest.raises(CloudRefused, match="HandoffState"):
            await cloud.handoff(OPT_IN.handoff_id)


@pytest.mark.parametrize("confirmed", [True, False])
async def test_a_cancel_tells_whether_the_engine_confirmed(serve, confirmed):
    path = f"/pdd/handoffs/{OPT_IN.handoff_id}"
    server = await serve({("DELETE", path): (200, {"id": OPT_IN.handoff_id, "confirmed": confirmed})})
    async with CloudClient(server.url) as cloud:
        assert await cloud.cancel(OPT_IN.handoff_id) is confirmed


async def test_a_cancel_of_what_is_gone_is_confirmed(serve):
    server = await serve({})
    async with CloudClient(server.url) as cloud:
        assert await cloud.cancel(OPT_IN.handoff_id) is True


@pytest.fixture
def connect(serve):
    async def run(cloud_info, vocab, **more):
        server = await serve({("GET", "/pdd/info"): (200, cloud_info), **more.get("routes", {})})
        async with CloudClient(server.url) as cloud:
            return await cloud.connect(vocab), cloud, server

    return run


@pytest.mark.parametrize(
    ("features", "query"), [(["decode_budget"], ""), (["decode_budget", "budget_policies"], "?used=3")]
)
async def test_a_cancel_says_what_was_used_to_a_cloud_that_counts_it(serve, features, query):
    path = f"/pdd/handoffs/{OPT_IN.handoff_id}{query}"
    routes = {
        ("GET", "/pdd/info"): (200, {**info(), "features": features}),
        ("DELETE", path): (200, {"id": OPT_IN.handoff_id, "confirmed": False}),
    }
    server = await serve(routes)
    async with CloudClient(server.url) as cloud:
        await cloud.connect()
        assert await cloud.cancel(OPT_IN.handoff_id, used=3) is False  # the route was found: a 404 would be True


async def test_connect_reads_what_the_cloud_is(connect):
    told, cloud, _ = await connect(info(), Vocabulary())
    assert (told.model, cloud.info) == ("smol", told)
    assert cloud.cancel_timeout == pytest.approx(5.0)


async def test_a_vocabulary_is_checked_once(serve):
    server = await serve({("GET", "/pdd/info"): (200, info())})
    vocab = Vocabulary()
    async with CloudClient(server.url) as cloud:
        await cloud.connect()
        await cloud.connected(vocab)
        await cloud.connected(vocab)
    assert len(server.requests) == 2, "the first one checked nothing"


async def test_a_gguf_with_padding_is_no_mismatch(connect):
    await connect(info(), Vocabulary([*TABLE, b"<pad0>", b"<pad1>"]))


PIECE = {"start": 2048, "tokens": [token.hex() for token in TABLE[2048:3000]]}


async def test_a_different_token_is_named(connect):
    other = [*TABLE[:2500], b"autre", *TABLE[2501:]]
    routes = {("GET", "/pdd/vocabulary?start=2048"): (200, PIECE)}
    with pytest.raises(TokenizerMismatch, match="token 2500 is 'tok2500' in the cloud and 'autre' on the device"):
        await connect(info(), Vocabulary(other), routes=routes)


async def test_a_shorter_vocabulary_is_named(connect):
    routes = {("GET", "/pdd/vocabulary?start=2048"): (200, PIECE)}
    with pytest.raises(TokenizerMismatch, match=r"'tok2900'.*ends at 2899"):
        await connect(info(), Vocabulary(TABLE[:2900]), routes=routes)


async def test_another_end_of_sequence_is_a_mismatch(connect):
    with pytest.raises(TokenizerMismatch, match="end of sequence is token 7 in the cloud, 2 on the device"):
        await connect(info(eos_ids=(7, 8)), Vocabulary())


async def test_one_of_several_ends_of_sequence_is_enough(connect):
    """Of a chat model's two, one converter writes the first and another the second into a GGUF."""
    await connect(info(eos_ids=(7, 2)), Vocabulary())


async def test_a_control_token_that_is_text_here_is_a_mismatch(connect):
    with pytest.raises(TokenizerMismatch, match=r"token 0 .*ordinary text"):
        await connect(info(), Vocabulary(special=(2,)))


async def test_a_newer_schema_is_refused(connect):
    with pytest.raises(SchemaVersionError, match="upgrade pdd-device here"):
        await connect(info(schema_version="3.0"), Vocabulary())


async def test_an_older_schema_is_refused_before_its_vocabulary_is_compared(connect):
    """Its hashes are of other things: as a mismatch, this would be bad advice."""
    with pytest.raises(SchemaVersionError, match="upgrade pdd-device on the other side"):
        await connect(info(schema_version="1.0"), Vocabulary([b"other"]))


async def test_a_piece_of_the_vocabulary_that_is_none_is_refused(connect):
    piece = {"start": 2048, "tokens": ["not hexadecimal"]}
    routes = {("GET", "/pdd/vocabulary?start=2048"): (200, piece)}
    with pytest.raises(CloudRefused, match="VocabularyPiece"):
        await connect(info(), Vocabulary(TABLE[:2900]), routes=routes)


async def test_a_server_without_the_plugin_is_told_apart(serve):
    server = await serve({})
    async with CloudClient(server.url) as cloud:
        with pytest.raises(CloudRefused, match="VLLM_PLUGINS=pdd"):
            await cloud.connect(Vocabulary())


@pytest.mark.parametrize("body", [{"hello": 1}, [], "text"])
async def test_an_answer_that_is_no_info_is_refused(connect, body):
    with pytest.raises(CloudRefused, match="CloudInfo"):
        await connect(body, Vocabulary())


GARBAGE = [b"", b"not JSON", b'{"cut": ', b"\xff\xfe", b"[1, NaN"]


@pytest.mark.parametrize("body", GARBAGE)
async def test_garbage_that_calls_itself_json_is_refused(serve, body):
    path = f"/pdd/handoffs/{OPT_IN.handoff_id}"
    routes = {
        ("GET", "/pdd/info"): (200, body),
        ("GET", f"{path}?wait=0"): (200, body),
        ("DELETE", path): (200, body),
    }
    server = await serve(routes)
    async with CloudClient(server.url, model="smol") as cloud:
        for ask in (
            cloud.connect,
            lambda: cloud.handoff(OPT_IN.handoff_id),
            lambda: cloud.cancel(OPT_IN.handoff_id),
        ):
            with pytest.raises(CloudRefused, match="the cloud's answer is not"):
                await ask()


@pytest.mark.parametrize("body", GARBAGE)
async def test_garbage_in_place_of_the_list_of_models_is_refused(serve, body):
    server = await serve({("GET", "/models"): (200, body)})
    async with CloudClient(server.url) as cloud:
        with pytest.raises(CloudRefused):
            await anext(cloud.stream(REQUEST, None))


async def streamed(stream, sse, order, *, mark=()):
    """The ids that come of events 0 to 5, one token each, in this order."""
    events = [sse.chunk([10 + number]) for number in range(5)]
    events.append(sse.chunk([15], finish="stop"))
    pieces = [b"\xef\xbb\xbf" * (place in mark) + events[number] for place, number in enumerate(order)]
    await stream([*pieces, sse.DONE])
    return [token for chunk in stream.chunks for token in chunk.token_ids]


@pytest.mark.parametrize(
    ("order", "received"),
    [
        ((0, 0, 1, 2, 3, 4, 5), 1),
        ((0, 1, 2, 3, 3, 4, 5), 4),
        ((0, 1, 2, 3, 4, 5, 5), 6),
        ((1, 2, 3, 4, 5), 0),
        ((0, 1, 3, 4, 5), 2),
        ((0, 1, 2, 3, 5), 4),
        ((0, 2, 1, 3, 4, 5), 1),
        ((0, 1, 2, 3, 4), 5),
    ],
)
async def test_an_event_that_comes_twice_or_not_at_all_is_a_lost_stream(stream, sse, order, received):
    lost = pytest.raises(CloudLost, match=r"lacks or repeats an event|without a finish reason")
    # a repetition of the end comes when nobody listens any more
    with lost if received < 6 else nullcontext():
        await streamed(stream, sse, order)
    ids = [token for chunk in stream.chunks for token in chunk.token_ids]
    assert ids == list(range(10, 10 + received))


async def test_a_byte_order_mark_before_the_stream_is_skipped(stream, sse):
    assert await streamed(stream, sse, range(6), mark=(0,)) == [10, 11, 12, 13, 14, 15]


@pytest.mark.parametrize("place", [1, 4, 5])
async def test_a_byte_order_mark_within_the_stream_costs_its_event(stream, sse, place):
    with pytest.raises(CloudLost):
        await streamed(stream, sse, range(6), mark=(place,))
    assert len(stream.chunks) == place


async def test_a_cloud_that_does_not_count_is_refused(stream, sse):
    choice = {"index": 0, "text": "t", "token_ids": [1], "finish_reason": "stop"}
    with pytest.raises(CloudRefused, match=r"a gateway in between .* continuous_usage_stats"):
        await stream([sse.event({"choices": [choice]}), sse.DONE])


async def test_a_stream_of_empty_events_brings_nothing(stream, sse):
    """So it is silent, and a session's patience ends."""
    with pytest.raises(CloudLost, match="without a finish reason"):
        await stream([sse.chunk([], text="x") for _ in range(20)])
    assert stream.chunks == []


@pytest.mark.parametrize("ids", ["12", ["1"], [1.5], [None], [True], [-1], {"1": 2}, 7])
async def test_ids_that_are_none_are_a_lost_stream(stream, sse, ids):
    with pytest.raises(CloudLost):
        await stream([sse.chunk([1]), sse.chunk(ids), sse.DONE])
    assert [chunk.token_ids for chunk in stream.chunks] == [(1,)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)
LOGPROBS = st.fixed_dictionaries({}, optional=dict.fromkeys(("tokens", "token_logprobs", "top_logprobs"), JSON))
CHOICE = st.fixed_dictionaries(
    {},
    optional={
        "index": JSON,
        "text": JSON,
        "token_ids": st.lists(st.integers(), max_size=3) | JSON,
        "finish_reason": st.sampled_from(["stop", "length"]) | JSON,
        "stop_reason": JSON,
        "logprobs": LOGPROBS | JSON,
    },
)
USAGE = st.fixed_dictionaries({"completion_tokens": st.integers(0, 6) | JSON}) | JSON
EVENT = (
    st.fixed_dictionaries(
        {}, optional={"id": JSON, "choices": st.lists(CHOICE, max_size=2) | JSON, "usage": USAGE, "error": JSON}
    )
    | JSON
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(events=st.lists(EVENT, max_size=3))
def test_whatever_a_stream_holds_it_is_tokens_or_a_loss(sse, events):
    body = b"".join(map(sse.event, events)) + sse.DONE

    def answer(_):
        return httpx2.Response(200, headers={"content-type": "text/event-stream"}, content=body)

    async def read():
        transport = httpx2.MockTransport(answer)
        async with (
            httpx2.AsyncClient(transport=transport) as http_client,
            openai.AsyncOpenAI(api_key="x", base_url="http://c/v1", http_client=http_client) as client,
        ):
            stream = await client.completions.create(model="m", prompt="x", stream=True)
            async for chunk in read_stream(stream, top_logprobs=2):
                assert all(type(token) is int and token >= 0 for token in chunk.token_ids)
                assert isinstance(chunk.text, str)
                assert all(isinstance(one.chosen.logprob, float) for one in chunk.logprobs)

    with suppress(CloudLost, CloudRefused):
        anyio.run(read)


@pytest.mark.parametrize("features", [["decode_budget"], ["decode_budget", "tokenizer_digest"]])
@pytest.mark.parametrize("vocab", [None, Vocabulary()], ids=["not checked", "checked"])
async def test_a_cloud_that_compares_it_is_told_whose_ids_these_are(serve, sse, features, vocab):
    told = {**info(), "features": features}
    server = await serve(
        {
            ("GET", "/pdd/info"): (200, told),
            COMPLETIONS: (200, [sse.chunk([1], finish="stop"), sse.DONE]),
        }
    )
    async with CloudClient(server.url) as cloud:
        await cloud.connect(vocab)
        for opt_in in (OPT_IN, None):
            async for _ in cloud.stream(REQUEST, opt_in):
                pass
    opted_in, plain = (body for _, _, body in server.requests[-2:])
    knows = "tokenizer_digest" in features and vocab is not None
    digest = {"pdd_tokenizer": told["tokenizer"]["digest"]} if knows else {}
    assert digest.items() <= opted_in["vllm_xargs"].items()
    assert plain.get("vllm_xargs", {}) == digest


async def test_a_cloud_with_another_vocabulary_refuses_with_its_code(stream):
    refusal = {"error": {"message": "no", "type": "BadRequestError", "param": "p", "code": "tokenizer_mismatch"}}
    with pytest.raises(CloudRefused) as refused:
        await stream((400, refusal))
    assert (refused.value.status, refused.value.code) == (400, "tokenizer_mismatch")


@pytest.mark.parametrize(("features", "tenant"), [(["decode_budget"], None), (["budget_policies"], "ward-7")])
async def test_a_tenant_is_named_to_a_cloud_that_has_tenants(serve, sse, features, tenant):
    answers = {
        ("GET", "/pdd/info"): (200, {**info(), "features": features}),
        COMPLETIONS: (200, [sse.chunk([1], finish="stop"), sse.DONE]),
    }
    server = await serve(answers)
    async with CloudClient(server.url, tenant="ward-7") as cloud:
        await cloud.connect()
        async for _ in cloud.stream(REQUEST, OPT_IN):
            pass
    assert server.requests[-1][2]["vllm_xargs"].get("pdd_tenant") == tenant
