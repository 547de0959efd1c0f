"""An answer whose client has named the conversation goes on without it, and can be read again to the byte."""

import gc
import json
import logging
import weakref
from contextlib import asynccontextmanager

import anyio
import httpx2
import pytest

from pdd_core.errors import CloudLost
from pdd_llamacpp_adapter.server.answers import answering
from pdd_llamacpp_adapter.server.streams.kept_streams import StreamLimits

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

CHAT = "/v1/chat/completions"
ASK = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "stream_options": {"include_usage": True}}
BODIES = {
    CHAT: ASK,
    "/v1/completions": {"prompt": "Hi", "stream": True},
    "/v1/responses": {"input": "Hi", "stream": True},
}
NAMED = {"X-Conversation-Id": "talk-1"}
STREAM = "/v1/stream/talk-1"


@pytest.fixture
def http(served):
    """Serve a service on a real socket; gives a client that shows bytes."""

    @asynccontextmanager
    async def start(service, **options):
        async with served(service, **options) as client:
            root = str(client.base_url).removesuffix("/v1/")
            async with httpx2.AsyncClient(base_url=root, timeout=60) as http:
                yield http

    return start


async def begun(http, path=CHAT, headers=NAMED, until=b'"A"'):
    """Ask, and leave once `until` is there; returns what came until then."""
    heard = b""
    async with http.stream("POST", path, json=BODIES[path], headers=headers) as answer:
        assert answer.status_code == 200
        async for data in answer.aiter_raw():
            heard += data
            if until in heard:
                return heard
    raise AssertionError(heard)


@pytest.mark.parametrize("path", BODIES)
async def test_a_client_that_comes_back_gets_the_rest_once(service, http, until, path):
    go_on = anyio.Event()
    made = service(["A", go_on.wait, "B", "C"])
    async with http(made) as client:
        heard = await begun(client, path)
        async with client.stream("GET", STREAM, params={"from": len(heard)}) as rest:
            assert rest.headers["content-type"].startswith("text/event-stream")
            go_on.set()
            rest = await rest.aread()
        assert made.runtime.sessions[0].ended
        whole = (await client.get(STREAM)).content
    assert heard + rest == whole
    assert [whole.count(f'"{word}"'.encode()) for word in "ABC"] == [whole.count(b'"A"')] * 3
    if path == CHAT:
        assert whole.endswith(b"data: [DONE]\n\n")
        assert b'"completion_tokens":3' in whole
    assert len(made.runtime.sessions) == 1


async def test_its_bytes_are_those_of_an_answer_that_is_not_kept(service, http, monkeypatch):
    monkeypatch.setattr("pdd_llamacpp_adapter.server.chat.chat_routes.new_id", lambda _: "chatcmpl-1")
    monkeypatch.setattr(answering.time, "time", lambda: 1_700_000_000.0)
    async with http(service()) as client:
        plain = await client.post(CHAT, json=ASK)
        kept = await client.post(CHAT, json=ASK, headers=NAMED)
        assert plain.content == kept.content == (await client.get(STREAM)).content
        assert kept.headers["x-pdd"] == plain.headers["x-pdd"]


async def test_without_the_header_leaving_stops_the_answer(service, http, until):
    made = service(["A", 60.0, "B"])
    async with http(made) as client:
        await begun(client, headers={})
        await until(lambda: made.runtime.sessions[0].left)
        assert made.streams.all() == []


async def test_without_any_stream_to_keep_leaving_stops_it_too(service, http, until):
    made = service(["A", 60.0, "B"], streams=StreamLimits(count=0))
    async with http(made) as client:
        await begun(client)
        await until(lambda: made.runtime.sessions[0].left)
        assert (await client.get(STREAM)).status_code == 404


async def test_keep_alives_and_an_error_in_the_middle_are_read_again_as_they_were(service, http):
    fail = anyio.Event()
    made = service(["A", fail.wait, CloudLost("gone")], keep_alive=0.02)
    async with http(made) as client:
        heard = await begun(client, until=b'"A"')
        async with client.stream("GET", STREAM, params={"from": len(heard)}) as rest:
            async for data in rest.aiter_raw():
                heard += data
                if heard.count(b": keep-alive") >= 2:
                    fail.set()
        whole = (await client.get(STREAM)).content
    assert whole == heard
    *_, error, done, _ = whole.split(b"\n\n")
    assert json.loads(error[6:])["error"]["code"] == "cloud_unavailable"
    assert done == b"data: [DONE]"


async def test_deleting_the_stream_stops_the_answer(service, http, until):
    made = service(["A", 600.0, "B"])
    async with http(made) as client:
        await begun(client)
        async with client.stream("GET", STREAM) as reading:
            assert (await client.delete(STREAM)).status_code == 204
            await until(lambda: made.runtime.sessions[0].left)
            assert b"answer_deleted" in await reading.aread()
        assert (made.queue.running, made.queue.waiting) == (0, 0)
        assert (await client.get(STREAM)).status_code == 404
        assert (await client.delete(STREAM)).status_code == 204


async def test_another_answer_of_the_conversation_takes_the_place_of_the_first(service, http):
    made = service(["A", 600.0, "B"])
    async with http(made) as client:
        await begun(client)
        async with client.stream("GET", STREAM) as reading:
            made.runtime.script = ["C"]
            second = (await client.post(CHAT, json=ASK, headers=NAMED)).content
            assert b"stream_replaced" in await reading.aread()
        assert made.runtime.sessions[0].left
        assert second == (await client.get(STREAM)).content
        assert b'"C"' in second
        assert len(made.streams.all()) == 1


async def test_an_answer_that_nobody_reads_is_given_up(service, http, until):
    made = service(["A", 600.0, "B"], keep_alive=0.01, streams=StreamLimits(ttl=0.05))
    async with http(made) as client:
        await begun(client)
        await until(lambda: made.runtime.sessions[0].left)
        assert (made.queue.running, made.queue.waiting) == (0, 0)
        await until(lambda: made.streams.all() == [])


async def test_a_refused_request_leaves_no_stream(service, http, until):
    made = service([CloudLost("gone")])
    async with http(made) as client:
        assert (await client.post(CHAT, json=ASK, headers=NAMED)).status_code == 503
        assert (await client.post(CHAT, json={**ASK, "top_p": 7}, headers=NAMED)).status_code == 400
        assert made.streams.all() == []


async def test_why_an_answer_failed_is_told_to_the_client_that_comes_back(service, http, until):
    fail = anyio.Event()
    made = service([fail.wait, CloudLost("gone")])
    async with http(made) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.post(CHAT, json=ASK, headers=NAMED))
            await until(lambda: made.queue.running == 1)
            tasks.cancel_scope.cancel()
        fail.set()
        await until(lambda: made.queue.running == 0)
        assert b"cloud_unavailable" in (await client.get(STREAM)).content


async def test_where_all_streams_are_at_work_another_is_refused(service, http):
    made = service(["A", 600.0], streams=StreamLimits(count=1))
    async with http(made) as client:
        await begun(client)
        refused = await client.post(CHAT, json=ASK, headers={"X-Conversation-Id": "other"})
        assert refused.status_code == 429
        assert int(refused.headers["retry-after"]) >= 1
        await client.delete(STREAM)


async def test_a_stop_of_the_server_ends_the_answer_that_nobody_reads(service, http, until):
    made = service(["A", 600.0, "B"])
    async with http(made) as client:
        heard = await begun(client)
        async with client.stream("GET", STREAM, params={"from": len(heard)}) as rest:
            with anyio.fail_after(60):
                await made.shut_down(0)
            assert b"server_shutting_down" in await rest.aread()
    assert made.runtime.sessions[0].left


async def test_no_name_and_no_text_is_logged(service, http, caplog):
    caplog.set_level(logging.DEBUG)
    async with http(service(["xylophone"])) as client:
        await client.post(CHAT, json=ASK, headers={"X-Conversation-Id": "talk-xyz"})
        await client.get("/v1/stream/talk-xyz")
        await client.delete("/v1/stream/talk-xyz")
    ours = [record.getMessage() for record in caplog.records if not record.name.startswith("http")]
    assert not [line for line in ours if "talk-xyz" in line or "xylophone" in line]


async def test_of_an_answer_that_has_ended_only_the_bytes_are_kept(service, http, monkeypatch):
    answers = weakref.WeakSet()
    begin = answering.RunningAnswer.run

    async def run(self, emit):
        answers.add(self)
        await begin(self, emit)

    monkeypatch.setattr(answering.RunningAnswer, "run", run)
    made = service(stored_answers=0)
    async with http(made) as client:
        for number in range(40):
            name = {"X-Conversation-Id": f"talk-{number}"}
            assert (await client.post(CHAT, json=ASK, headers=name)).status_code == 200
        gc.collect()
        assert len(answers) <= 1
        assert len(made.streams.all()) == 16
