import asyncio
import json

import pytest
from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from prometheus_client import CollectorRegistry
from vllm_fakes import FakeEngine, output, sampling_params

from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.generate_recorder import GenerateRecorder
from pdd_vllm_plugin.handoff_routes import make_router
from pdd_vllm_plugin.handoff_service import HandoffService
from pdd_vllm_plugin.handoff_store import HandoffStore
from pdd_vllm_plugin.metrics import CloudMetrics
from pdd_vllm_plugin.middleware import OptInCheck

pytestmark = pytest.mark.anyio
ID = "a" * 32
CHAT_ID = "chatcmpl-" + "c" * 20
OPT_IN = {"pdd_handoff": ID, "pdd_decode_budget": 2}


class Server:
    """The plugin's routes and middleware over a fake engine, and one route that stands for vLLM's."""

    def __init__(self, **config):
        self.engine = FakeEngine([output([7], "a"), output([8], "b"), output([9], "c", "stop")])
        self.registry = CollectorRegistry()
        self.service = HandoffService(CloudMetrics(self.registry))
        self.service.config = PDDConfig(**config)
        self.service.store = HandoffStore(self.service.config)
        self.service.engine_client = self.engine
        self.service.vocabulary = [b"a", None, b"\xc3"]
        self.service.info_json = b'{"model":"m"}'
        self.recorder = GenerateRecorder(
            self.engine, self.service.store, model="m", tokenizer="digest", metrics=self.service.metrics
        )
        self.posted = []
        self.streams = []  # kept, or the garbage collector would end them as a leaving client does
        app = FastAPI()
        app.include_router(make_router(self.service))
        app.add_middleware(OptInCheck, service=self.service)

        @app.post("/v1/completions")
        @app.post("/v1/chat/completions")
        async def completions(body: dict):
            self.posted.append(body)
            return {"ok": True}

        self.client = AsyncClient(transport=ASGITransport(app), base_url="http://plugin")

    def begin(self, request_id=CHAT_ID, opt_in=OPT_IN):
        self.streams.append(
            self.recorder.generate({"prompt_token_ids": [1, 2]}, sampling_params(opt_in), request_id)
        )
        return self.streams[-1]


@pytest.fixture
async def server():
    made = Server()
    async with made.client:
        yield made


async def test_the_state_can_be_read_from_the_first_token_on(server):
    stream = server.begin()
    await anext(stream)
    state = (await server.client.get(f"/v1/pdd/handoffs/{ID}")).json()
    assert (state["status"], state["prompt_token_ids"], state["output_token_ids"]) == ("running", [1, 2], [7])
    await anext(stream)
    later = (await server.client.get(f"/v1/pdd/handoffs/{ID}", params={"after": 1})).json()
    assert (later["after"], later["output_token_ids"]) == (1, [8])
    assert later["refinement"]["reason"] == "not_requested"


async def test_a_reader_can_wait_for_the_status_to_change(server):
    stream = server.begin()
    await anext(stream)
    waiting = asyncio.create_task(server.client.get(f"/v1/pdd/handoffs/{ID}", params={"wait": 30}))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    async for _ in stream:
        pass
    assert (await waiting).json()["status"] == "finished"


async def test_waiting_ends_in_time_when_nothing_changes(server):
    await anext(server.begin())
    answer = await server.client.get(f"/v1/pdd/handoffs/{ID}", params={"wait": 0.01})
    assert answer.json()["status"] == "running"


async def test_openai_shape_by_completion_id_and_by_handoff_id(server):
    stream = server.begin()
    await anext(stream)
    for name in (CHAT_ID, ID):
        body = (await server.client.get(f"/v1/chat/completions/{name}")).json()
        assert (body["id"], body["object"]) == (CHAT_ID, "chat.completion")
        assert body["choices"][0]["message"]["content"] == "a"
        assert body["choices"][0]["finish_reason"] is None
        assert body["choices"][0]["token_ids"] == [7]
        assert body["pdd"]["status"] == "running"


async def test_unknown_ids_are_404_with_an_error_object(server):
    for method, path in (
        ("GET", "/v1/pdd/handoffs/unknown-unknown-1"),
        ("DELETE", "/v1/pdd/handoffs/unknown-unknown-2"),
        ("DELETE", "/v1/pdd/handoffs/x"),
        ("GET", "/v1/chat/completions/chatcmpl-unknown"),
        ("DELETE", "/v1/chat/completions/chatcmpl-unknown"),
    ):
        answer = await server.client.request(method, path)
        assert answer.status_code == 404
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
        assert answer.json()["error"]["code"] == 404


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", "/v1/pdd/nothing", None),
        ("POST", "/v1/pdd/", None),
        ("DELETE", "/v1/pdd/handoffs/a/b", None),
        ("POST", "/v1/pdd/info", "GET"),
        ("HEAD", "/v1/pdd/vocabulary", "GET"),
        ("PUT", f"/v1/pdd/handoffs/{ID}", "DELETE, GET"),
    ],
)
async def test_an_unknown_path_or_method_is_refused_with_an_error_object(server, method, path, allow):
    await anext(server.begin())
    answer = await server.client.request(method, path)
    status = 404 if allow is None else 405
    assert (answer.status_code, answer.headers.get("allow")) == (status, allow)
    if method != "HEAD":
        error = answer.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == status
        assert f"{method} {path}" in error["message"]
    assert server.service.store.get(ID)


async def test_delete_stops_the_engine_and_answers_when_it_has_confirmed(server):
    stream = server.begin()
    await anext(stream)
    answer = await server.client.delete(f"/v1/pdd/handoffs/{ID}")
    assert answer.status_code == 200
    assert answer.json() == {"id": ID, "object": "pdd.handoff.deleted", "deleted": True, "confirmed": True}
    assert server.engine.aborted == [server.engine.calls[0][0]]
    assert server.engine.paused_calls == 1
    assert (await server.client.get(f"/v1/pdd/handoffs/{ID}")).status_code == 404


@pytest.mark.parametrize("path", [f"/v1/pdd/handoffs/{ID}", f"/v1/chat/completions/{CHAT_ID}"])
async def test_a_second_delete_is_fine(server, path):
    await anext(server.begin())
    assert (await server.client.delete(path)).status_code == 200
    second = await server.client.delete(path)
    assert (second.status_code, second.json()["deleted"]) == (200, True)
    assert len(server.engine.aborted) == 1


async def test_a_new_request_with_a_deleted_completions_id_is_still_found(server):
    await anext(server.begin())
    assert (await server.client.delete(f"/v1/chat/completions/{CHAT_ID}")).status_code == 200
    await anext(server.begin(opt_in={"pdd_handoff": "b" * 32}))
    answer = await server.client.delete(f"/v1/chat/completions/{CHAT_ID}")
    assert (answer.status_code, len(server.engine.aborted)) == (200, 2)


async def test_an_unconfirmed_delete_says_so_in_bounded_time():
    server = Server(cancel_timeout_s=0.02)
    server.engine.answers_after = 30.0
    async with server.client:
        await anext(server.begin())
        answer = await server.client.delete(f"/v1/pdd/handoffs/{ID}")
    assert (answer.status_code, answer.json()["confirmed"]) == (202, False)


async def test_deleting_a_finished_request_needs_no_engine(server):
    async for _ in server.begin():
        pass
    answer = await server.client.delete(f"/v1/chat/completions/{CHAT_ID}")
    assert answer.json() == {
        "id": CHAT_ID,
        "object": "chat.completion.deleted",
        "deleted": True,
        "confirmed": True,
    }
    assert server.engine.aborted == []


async def test_a_delete_that_overtakes_its_post_refuses_it(server):
    assert (await server.client.delete(f"/v1/pdd/handoffs/{ID}")).status_code == 404
    answer = await server.client.post("/v1/completions", json={"prompt": "p", "vllm_xargs": OPT_IN})
    assert answer.status_code == 400
    assert "deleted a moment ago" in answer.json()["error"]["message"]
    assert server.posted == []


async def test_where_an_unknown_id_cannot_be_refused_its_delete_says_so(server, monkeypatch):
    monkeypatch.setattr("pdd_vllm_plugin.tombstones.MAX_REFUSED", 2)
    others = ["b" * 32, "c" * 32]
    for other in others:
        assert (await server.client.delete(f"/v1/pdd/handoffs/{other}")).status_code == 404
    for asked in (
        await server.client.delete(f"/v1/pdd/handoffs/{ID}"),
        await server.client.post("/v1/completions", json={"vllm_xargs": {"pdd_cancel": ID}}),
    ):
        assert (asked.status_code, asked.headers["retry-after"]) == (429, "1")
        assert "cannot be refused" in asked.json()["error"]["message"]
    assert (await server.client.delete("/v1/pdd/handoffs/x")).status_code == 404  # no request can have this id
    for other in others:
        assert (await server.client.delete(f"/v1/pdd/handoffs/{other}")).status_code == 404
        answer = await server.client.post("/v1/completions", json={"vllm_xargs": {"pdd_handoff": other}})
        assert answer.status_code == 400
    await anext(server.begin())
    assert (await server.client.delete(f"/v1/pdd/handoffs/{ID}")).status_code == 200


async def test_one_request_id_twice_is_a_conflict_for_the_completions_id_only(server):
    other = "b" * 32
    await anext(server.begin())
    await anext(server.begin(opt_in={"pdd_handoff": other}))
    assert (await server.client.delete(f"/v1/chat/completions/{CHAT_ID}")).status_code == 409
    assert (await server.client.delete(f"/v1/pdd/handoffs/{ID}")).status_code == 200
    assert len(server.engine.aborted) == 1
    assert (await server.client.get(f"/v1/pdd/handoffs/{other}")).json()["status"] == "running"


async def test_info_and_vocabulary(server):
    assert (await server.client.get("/v1/pdd/info")).json() == {"model": "m"}
    piece = (await server.client.get("/v1/pdd/vocabulary", params={"start": 1})).json()
    assert piece == {"start": 1, "tokens": [None, "c3"]}


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"vllm_xargs": {**OPT_IN, "pdd_decode_budget": True}}, "vllm_xargs.pdd_decode_budget"),
        ({"vllm_xargs": {**OPT_IN, "pdd_decode_budget": 10**9}}, "vllm_xargs.pdd_decode_budget"),
        ({"vllm_xargs": {**OPT_IN, "pdd_refine_ratio": 2}}, "vllm_xargs.pdd_refine_ratio"),
        ({"vllm_xargs": {"pdd_handoff": ""}}, "vllm_xargs.pdd_handoff"),
        ({"vllm_xargs": {**OPT_IN, "pdd_protect": list(range(1_000_000))}}, "vllm_xargs.pdd_protect"),
        ({"vllm_xargs": OPT_IN, "stop": "x" * 20_000}, "stop"),
        ({"vllm_xargs": OPT_IN, "stop": ["x"], "bad_words": ["x" * 20_000]}, "bad_words"),
        ({"vllm_xargs": OPT_IN, "stop_sequences": ["x" * 10_000, "y" * 10_000]}, "stop_sequences"),
        ({"vllm_xargs": OPT_IN, "stop_token_ids": [7] * 200_000}, "stop_token_ids"),
        ({"vllm_xargs": OPT_IN, "logit_bias": dict.fromkeys(range(200_000), 1)}, "logit_bias"),
        ({"vllm_xargs": OPT_IN, "n": 2}, "n"),
        ({"vllm_xargs": OPT_IN, "use_beam_search": True}, "use_beam_search"),
        ({"vllm_xargs": OPT_IN, "prompt": ["one", "two"]}, "prompt"),
        ({"vllm_xargs": OPT_IN, "prompt": [[1, 2], [3]]}, "prompt"),
    ],
)
async def test_a_wrong_opt_in_is_a_400_that_names_the_field(server, body, param):
    answer = await server.client.post("/v1/completions", json={"prompt": "p", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert server.posted == []


async def test_ids_of_another_vocabulary_are_refused_with_a_code_of_their_own(server):
    server.service.tokenizer = "a" * 64
    for path in POSTS:
        foreign = await ask(server, path, {**OPT_IN, "pdd_tokenizer": "b" * 64}, prompt=[1, 2])
        error = foreign.json()["error"]
        assert (foreign.status_code, error["code"]) == (400, "tokenizer_mismatch")
        assert error["param"] == "vllm_xargs.pdd_tokenizer"
    assert server.posted == []
    own = await ask(server, POSTS[0], {**OPT_IN, "pdd_tokenizer": "a" * 64}, prompt=[1, 2])
    assert own.json() == {"ok": True}


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": "about pdd_decode_budget"},
        {"prompt": [1, 2, 3], "vllm_xargs": OPT_IN},
        {"prompt": [[1, 2, 3]], "vllm_xargs": OPT_IN},
        {"prompt": "p", "vllm_xargs": {"mine": 1}},
        {"prompt": "about pdd_", "vllm_xargs": {"mine": 1}, "stop": "x" * 20_000, "bad_words": ["x" * 20_000]},
        {"prompt": "p", "vllm_xargs": None},
    ],
)
async def test_other_requests_pass_unchanged(server, body):
    assert (await server.client.post("/v1/completions", json=body)).json() == {"ok": True}
    assert server.posted == [body]


async def test_a_body_that_is_no_json_is_left_to_vllm(server):
    answer = await server.client.post(
        "/v1/completions", content=b'{"pdd_": ', headers={"content-type": "application/json"}
    )
    assert answer.status_code == 422  # FastAPI's own; vLLM turns it into a 400


@pytest.mark.parametrize("inside", ["pdd_", "vllm_xargs"])
async def test_a_body_without_end_of_its_levels_is_left_to_vllm(server, inside):
    nested = b"[" * 100_000 + b"]" * 100_000
    body = b'{"pdd_": 1, "%s": %s}' % (inside.encode(), nested)
    answer = await server.client.post(
        "/v1/completions", content=body, headers={"content-type": "application/json"}
    )
    assert (answer.status_code, server.posted) == (400, [])  # FastAPI's own


async def test_a_body_of_many_levels_that_vllm_takes_reaches_it(server):
    body = {"prompt": "what is pdd_handoff?", "schema": json.loads("[" * 300 + "]" * 300)}
    assert (await server.client.post("/v1/completions", json=body)).status_code == 200
    assert server.posted == [body]


async def test_a_store_full_of_running_requests_is_a_429():
    server = Server(max_handoffs=1)
    async with server.client:
        await anext(server.begin())
        answer = await server.client.post("/v1/completions", json={"vllm_xargs": {"pdd_handoff": "b" * 32}})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "1"


async def test_the_body_is_replayed_and_then_the_real_channel_speaks():
    heard = []

    async def app(scope, receive, send):
        heard.extend([await receive() for _ in range(3)])

    service = HandoffService()
    body = json.dumps({"vllm_xargs": OPT_IN}).encode()
    messages = iter([
        {"type": "http.request", "body": body[:5], "more_body": True},
        {"type": "http.request", "body": body[5:], "more_body": False},
        {"type": "http.disconnect"},
    ])  # fmt: skip

    async def receive():
        return next(messages)

    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await OptInCheck(app, service)(scope, receive, None)
    assert [message["type"] for message in heard] == ["http.request", "http.request", "http.disconnect"]
    assert b"".join(message.get("body", b"") for message in heard) == body


async def test_a_delete_counts_what_its_client_had_no_use_for(server):
    stream = server.begin()
    await anext(stream)
    await anext(stream)
    answer = await server.client.delete(f"/v1/pdd/handoffs/{ID}?used=1")
    assert answer.status_code == 200
    assert server.registry.get_sample_value("pdd_tokens_in_vain_total") == 1
    assert server.registry.get_sample_value("pdd_cancels_total", {"confirmed": "true"}) == 1
    await server.client.delete(f"/v1/pdd/handoffs/{ID}?used=1")
    assert server.registry.get_sample_value("pdd_tokens_in_vain_total") == 1
    assert (await server.client.delete(f"/v1/pdd/handoffs/{ID}?used=-1")).status_code in {400, 422}


POSTS = ["/v1/completions", "/v1/chat/completions"]


async def ask(server, path, fields, **more):
    return await server.client.post(path, json={**more, "vllm_xargs": fields})


@pytest.mark.parametrize("path", POSTS)
@pytest.mark.parametrize(
    ("fields", "route"),
    [
        ({"pdd_info": True}, "/v1/pdd/info"),
        ({"pdd_vocabulary": 1}, "/v1/pdd/vocabulary?start=1"),
        ({"pdd_read": "b" * 32}, "/v1/pdd/handoffs/" + "b" * 32),
    ],
)
async def test_a_question_by_post_is_answered_as_by_its_route(server, path, fields, route):
    asked, routed = await ask(server, path, fields, messages=[], stream=True), await server.client.get(route)
    assert (asked.status_code, asked.content) == (routed.status_code, routed.content)
    assert asked.headers["cache-control"] == "no-store"
    assert server.posted == []


@pytest.mark.parametrize("path", POSTS)
async def test_a_state_is_read_and_deleted_by_post(server, path):
    stream = server.begin()
    await anext(stream)
    await anext(stream)
    read = (await ask(server, path, {"pdd_read": ID, "pdd_after": 1})).json()
    route = (await server.client.get(f"/v1/pdd/handoffs/{ID}?after=1")).json()
    assert read.pop("expires") == pytest.approx(route.pop("expires"), abs=60)
    assert read == route
    assert read["output_token_ids"] == [8]
    deleted = await ask(server, path, {"pdd_cancel": ID, "pdd_used": 1})
    assert deleted.json() == {"id": ID, "object": "pdd.handoff.deleted", "deleted": True, "confirmed": True}
    assert server.registry.get_sample_value("pdd_tokens_in_vain_total") == 1
    again = await ask(server, path, {"pdd_cancel": ID})
    assert (again.status_code, again.json()) == (200, deleted.json())
    assert (await ask(server, path, {"pdd_read": ID})).status_code == 404
    assert server.posted == []


async def test_a_question_by_post_can_wait(server):
    stream = server.begin()
    await anext(stream)
    waiting = asyncio.create_task(ask(server, POSTS[0], {"pdd_read": ID, "pdd_wait": 30}))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    async for _ in stream:
        pass
    assert (await waiting).json()["status"] == "finished"


async def test_a_question_is_answered_when_no_more_requests_are_taken():
    server = Server(max_handoffs=1)
    async with server.client:
        await anext(server.begin())
        assert (await ask(server, POSTS[1], {"pdd_read": ID})).status_code == 200
        assert (await ask(server, POSTS[1], {"pdd_handoff": "b" * 32})).status_code == 429


async def test_a_cancel_by_post_that_overtakes_its_request_refuses_it(server):
    assert (await ask(server, POSTS[1], {"pdd_cancel": ID})).status_code == 404
    assert (await ask(server, POSTS[1], OPT_IN)).status_code == 400
    assert server.posted == []


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (POSTS[0], {"pdd_read": "short"}, "pdd_read"),
        (POSTS[0], {"pdd_read": ID, "pdd_wait": 61}, "pdd_wait"),
        (POSTS[1], {"pdd_read": ID, "pdd_handoff": ID}, "pdd_handoff"),
        (POSTS[1], {"pdd_cancel": ID, "pdd_after": 1}, "pdd_after"),
        ("/v1/responses", {"pdd_read": ID}, "pdd_read"),
    ],
)
async def test_a_wrong_question_is_a_400_that_names_the_field(server, path, fields, param):
    answer = await ask(server, path, fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, f"vllm_xargs.{param}")
    assert server.posted == []


@pytest.mark.parametrize("name", ["pdd_read", "pdd_cancel", "pdd_info", "pdd_vocabulary"])
def test_a_question_that_the_middleware_did_not_see_is_no_request_for_an_answer(name):
    """Its body has more than 8 MiB, or spells the name with escapes."""
    server = Server()
    with pytest.raises(ValueError, match=f"{name} is not a field") as refused:
        server.begin(opt_in={name: ID})
    assert refused.value.parameter == f"vllm_xargs.{name}"
    assert server.engine.calls == []


@pytest.mark.parametrize(
    ("method", "path", "query"),
    [
        ("GET", "/v1/pdd/vocabulary", "start"),
        ("GET", f"/v1/pdd/handoffs/{ID}", "after"),
        ("DELETE", f"/v1/pdd/handoffs/{ID}", "used"),
        ("GET", f"/v1/pdd/handoffs/{ID}/kv", "from"),
        ("GET", f"/v1/pdd/handoffs/{ID}/kv", "to"),
    ],
)
@pytest.mark.parametrize("number", [-1, 2**31, 10**400])
async def test_a_count_that_no_answer_has_room_for_is_refused(server, method, path, query, number):
    await anext(server.begin())
    answer = await server.client.request(method, path, params={query: number})
    assert answer.status_code == 422  # vLLM makes it a 400
    assert answer.json()["detail"][0]["loc"] == ["query", query]
