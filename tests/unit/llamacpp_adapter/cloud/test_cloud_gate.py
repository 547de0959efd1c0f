"""Whatever a cloud says, and however much: an error of ours, or something that can be used."""

from __future__ import annotations

import asyncio
import gzip
import json
import math
from contextlib import asynccontextmanager
from types import SimpleNamespace

import anyio
import httpx2
import pytest
from example_count import examples
from hostile_documents import every_change, hostile
from hypothesis import given
from hypothesis import strategies as st
from still_time import StillTimeLoop

from pdd_core.errors import CloudError, CloudLost, CloudRefused, CloudUnreachable, PDDError
from pdd_core.fingerprint import fingerprint
from pdd_core.handoff import SCHEMA_VERSION
from pdd_core.optin import OptIn
from pdd_llamacpp_adapter.cloud import cloud_client, cloud_gate
from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
from pdd_llamacpp_adapter.cloud.cloud_monitor import CloudMonitor, Connection
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.session.refined_prompt_fetch import RefinedPromptFetch

pytestmark = pytest.mark.anyio

TABLE = [f"tok{number}".encode() for number in range(40)]
OPT_IN = OptIn("0123456789abcdef0123", 24)
PROMPT = (5, 6, 7)
REQUEST = AnswerRequest(prompt_token_ids=PROMPT, max_tokens=50, logprobs=1)

INFO = {
    "schema_version": SCHEMA_VERSION,
    "plugin_version": "0.1.0",
    "engine": "vllm 0.32.0",
    "model": "smol",
    "max_model_len": 2048,
    "tokenizer": json.loads(fingerprint(TABLE, special_ids=(0, 2), eos_ids=(2,)).model_dump_json()),
    "features": ["decode_budget", "budget_policies"],
    "refinement": "off",
    "limits": {"max_decode_budget": 256, "max_handoffs": 64, "ttl_s": 60.0, "cancel_timeout_s": 3.0},
}
PIECE = {"start": 0, "tokens": [b"tok0".hex(), b"other".hex(), None]}
MODELS = {"object": "list", "data": [{"id": "smol", "object": "model"}]}
DELETED = {"id": OPT_IN.handoff_id, "object": "pdd.handoff.deleted", "deleted": True, "confirmed": True}
STATE = {
    "schema_version": SCHEMA_VERSION,
    "handoff_id": OPT_IN.handoff_id,
    "request_id": "cmpl-1",
    "model": "smol",
    "tokenizer": "digest",
    "created": 1.0,
    "expires": 2.0,
    "status": "running",
    "finish_reason": None,
    "prompt_token_ids": list(PROMPT),
    "output_token_ids": [1],
    "output_logprobs": [{"1": -0.5}],
    "sampling_params": {},
    "decode_budget": {"tokens": 24, "set_by": "client"},
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
NOT_REFINED = {**STATE, "refinement": {"kind": "none", "reason": "failed", "message": "why"}}
EVENT = {
    "id": "cmpl-1",
    "choices": [
        {
            "index": 0,
            "text": "t",
            "token_ids": [1, 3],
            "finish_reason": "length",
            "stop_reason": "pdd_handoff",
            "logprobs": {
                "tokens": ["token_id:1", "token_id:3"],
                "token_logprobs": [-0.5, -0.25],
                "top_logprobs": [{"token_id:1": -0.5}, {"token_id:3": -0.25, "token_id:4": -1.5}],
            },
        }
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
}
PROBLEM = {"error": {"message": "no such thing", "type": "BadRequestError", "param": None, "code": 400}}


class Vocabulary:
    eos_id = 2
    token_bytes = TABLE

    def is_special(self, token_id):
        assert 0 <= token_id < 2**31, "no C int"
        return token_id in (0, 2)


VOCABULARY = Vocabulary()


class Cloud:
    """Answers each route with what is in `answers`: (status, content type, body). It has no socket."""

    def __init__(self):
        self.answers = {}

    def answer(self, request):
        route = next(name for name in (*self.answers, "") if name in request.url.path)
        status, kind, body = self.answers.get(route, (404, "application/json", b"{}"))
        return httpx2.Response(status, headers={"content-type": kind}, content=body)

    def set(self, route, body, *, status=200, kind="application/json"):
        self.answers[route] = (status, kind, body)


async def ask_info(client, cloud, answer):
    cloud.set("/pdd/info", **answer)
    info = await client.connect(VOCABULARY)
    assert 0 <= client.cancel_timeout < 100
    assert info.model.encode().decode().isprintable() or info.model == ""
    assert info.max_model_len + 1.0 < 2**32


async def ask_piece(client, cloud, answer):
    cloud.set("/pdd/info", json.dumps(INFO).encode())
    cloud.set("/pdd/vocabulary", **answer)
    await client.connect(SimpleNamespace(token_bytes=[b"tok0", b"autre"], eos_id=2, is_special=None))


async def ask_state(client, cloud, answer):
    cloud.set("/pdd/handoffs", **answer)
    state = await client.handoff(OPT_IN.handoff_id)
    assert all(math.isfinite(value) for row in state.output_logprobs or () for value in row.values())


async def ask_refinement(client, cloud, answer):
    """As a session asks: nothing is raised at all."""
    cloud.set("/pdd/handoffs", **answer)
    words = []
    live = SimpleNamespace(
        answer=SimpleNamespace(prompt=PROMPT, cloud_running=True, finished=False),
        took_over_at=None,
        decided=words.append,
        changed=lambda: None,
    )
    fetch = RefinedPromptFetch(live, 0.5, ())
    async with anyio.create_task_group() as tasks:
        fetch.start(tasks, client, OPT_IN.handoff_id)
    assert fetch.settled
    assert fetch.kept is None or fetch.kept == (0, 2) or 2 in fetch.kept
    assert all(word.encode() and len(word) < 1000 for word in words)


async def ask_deleted(client, cloud, answer):
    cloud.set("/pdd/handoffs", **answer)
    assert await client.cancel(OPT_IN.handoff_id, used=3) in (True, False)


async def ask_stream(client, cloud, answer):
    cloud.set("/pdd/info", json.dumps(INFO).encode())
    await client.connected(VOCABULARY)
    cloud.set("/completions", **answer)
    cloud.set("/models", json.dumps(MODELS).encode())
    async for chunk in client.stream(REQUEST, OPT_IN):
        assert all(type(token) is int and 0 <= token < len(TABLE) for token in chunk.token_ids)
        json.dumps([chunk.text, *(one.chosen.logprob for one in chunk.logprobs)], allow_nan=False).encode()
        chunk.text.encode()
        for one in chunk.logprobs:
            assert all(0 <= other.token_id < 2**31 and math.isfinite(other.logprob) for other in one.top)


async def ask_models(client, cloud, answer):
    cloud.set("/models", **answer)
    cloud.set("/completions", json.dumps(PROBLEM).encode(), status=400)
    async for _ in client.stream(REQUEST, None):
        pass


ROUTES = {
    "info": (ask_info, INFO),
    "piece": (ask_piece, PIECE),
    "state": (ask_state, STATE),
    "refined": (ask_refinement, STATE),
    "not refined": (ask_refinement, NOT_REFINED),
    "deleted": (ask_deleted, DELETED),
    "models": (ask_models, MODELS),
    "error": (ask_info, PROBLEM),
    "refused": (ask_stream, PROBLEM),
}


def event(body):
    return b"data: " + body + b"\n\n"


async def tried(client, cloud, ask, answer):
    """Ask, and look at the error if there is one."""
    try:
        await ask(client, cloud, answer)
    except PDDError as error:
        words = f"{type(error).__name__}: {error} {getattr(error, 'code', None)}"
        assert words.encode().decode().isprintable()
        assert len(words) < 1500
        return error
    return None


@asynccontextmanager
async def in_process(patch):
    cloud = Cloud()
    transport = httpx2.MockTransport(cloud.answer)
    patch.setattr(
        cloud_client, "bounded_reading", lambda: {**cloud_gate.bounded_reading(), "transport": transport}
    )
    async with CloudClient("http://cloud/v1", api_key="x") as client:
        yield client, cloud


def still(main):
    return anyio.run(main, backend_options={"loop_factory": StillTimeLoop})


def run(steps):
    """In a loop in which waiting takes no time: openai's client waits before it tries again."""
    with pytest.MonkeyPatch.context() as patch:

        async def main():
            async with in_process(patch) as (client, cloud):
                await steps(client, cloud)

        still(main)


@pytest.mark.parametrize("name", ROUTES)
def test_no_wrong_value_anywhere_in_an_answer_gets_through(name):
    ask, document = ROUTES[name]
    status = 400 if document is PROBLEM else 200

    async def steps(client, cloud):
        right = await tried(client, cloud, ask, {"body": json.dumps(document).encode(), "status": status})
        assert right is None or document in (PROBLEM, PIECE, MODELS)
        for path, body in every_change(document):
            if ask is not ask_refinement or path[:1] in ((), ("refinement",), ("prompt_token_ids",)):
                await tried(client, cloud, ask, {"body": body, "status": status})

    run(steps)


def test_no_wrong_value_anywhere_in_an_event_gets_through():
    async def steps(client, cloud):
        for document in (EVENT, PROBLEM):
            for _, body in every_change(document):
                answer = {"body": event(body) + event(b"[DONE]"), "kind": "text/event-stream"}
                await tried(client, cloud, ask_stream, answer)

    run(steps)


STATUS = st.sampled_from([200, 202, 400, 404, 500])
ANSWERS = st.sampled_from(sorted(ROUTES)).flatmap(
    lambda name: st.tuples(st.just(ROUTES[name][0]), hostile(ROUTES[name][1]), STATUS)
)
EVENT_BYTES = st.sampled_from([EVENT, PROBLEM]).flatmap(hostile).map(event) | st.binary(max_size=20)
EVENTS = st.tuples(st.just(ask_stream), st.lists(EVENT_BYTES, max_size=4).map(b"".join), st.just(200))


@examples(200, deadline=None)
@given(answers=st.lists(ANSWERS | EVENTS, min_size=1, max_size=4))
def test_whatever_a_cloud_answers_it_is_usable_or_an_error_of_ours(answers):
    async def steps(client, cloud):
        for ask, body, status in answers:
            await tried(client, cloud, ask, {"body": body, "status": status})

    run(steps)


@pytest.fixture
async def raw():
    """Start a server that sends what `write(writer)` writes to any request; returns its base URL."""
    servers = []

    async def start(write):
        async def handle(reader, writer):
            try:
                await reader.readuntil(b"\r\n\r\n")
                await write(writer)
                await writer.drain()
            except ConnectionError:
                pass
            finally:
                writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        servers.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"

    yield start
    for server in servers:
        server.close()


def head(status=200, *, kind="application/json", **headers):
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", "Connection: close"]
    return "\r\n".join([*lines, *(f"{name}: {value}" for name, value in headers.items()), "\r\n"]).encode()


def endless(start, piece):
    """Send `piece` again and again until the client leaves."""

    async def write(writer):
        writer.write(start)
        while True:
            writer.write(piece)
            await writer.drain()

    return write


def once(data):
    async def write(writer):
        writer.write(data)

    return write


async def all_asked(url, **options):
    """What each call of the client raises."""
    errors = []
    async with CloudClient(url, api_key="x", model="smol", **options) as client:
        for ask in (
            lambda: client.connect(retries=0),
            lambda: client.handoff(OPT_IN.handoff_id),
            lambda: client.cancel(OPT_IN.handoff_id),
            lambda: anext(client.stream(REQUEST, OPT_IN)),
        ):
            with anyio.fail_after(60), pytest.raises(CloudError) as caught:
                await ask()
            errors.append(caught.value)
    return errors


@pytest.mark.parametrize("status", [200, 400])
async def test_an_answer_without_end_is_not_read_to_its_end(raw, monkeypatch, status):
    monkeypatch.setattr(cloud_gate, "MAX_STATE_BYTES", cloud_gate.MAX_BYTES)
    errors = await all_asked(await raw(endless(head(status), b"[" * 65536)))
    assert all("more than" in str(error) for error in errors[:3]), errors
    if status == 400:
        assert "more than" in str(errors[3])


async def test_a_line_without_end_is_not_read_to_its_end(raw):
    url = await raw(endless(head(kind="text/event-stream"), b"data: x" * 9999))
    async with CloudClient(url, api_key="x", model="smol") as client:
        with anyio.fail_after(60), pytest.raises(CloudLost, match="an event of more than"):
            await anext(client.stream(REQUEST, OPT_IN))


async def test_a_compressed_answer_is_refused_unread(raw):
    bomb = gzip.compress(bytes(50_000_000))
    errors = await all_asked(await raw(once(head(**{"Content-Encoding": "gzip"}) + bomb)))
    assert all(isinstance(error, CloudRefused) and "compressed" in str(error) for error in errors), errors


async def test_a_circle_of_redirections_has_an_end(raw):
    url = await raw(once(head(307, Location="/v1/pdd/info", **{"Content-Length": 0})))
    async with CloudClient(url, api_key="x") as client:
        with anyio.fail_after(60), pytest.raises(CloudUnreachable):
            await client.connect(retries=0)


@pytest.mark.parametrize("where", ["http://[", "ftp://x/", "\x7f", "http://" + "x" * 3000])
async def test_a_redirection_to_nowhere_is_an_error_of_ours(raw, where):
    url = await raw(once(head(307, Location=where, **{"Content-Length": 0})))
    async with CloudClient(url, api_key="x") as client:
        with anyio.fail_after(60), pytest.raises(CloudError):
            await client.connect(retries=0)


@pytest.mark.parametrize(
    "start", [b"", b"\0\xff" * 99, b"HTTP/9.9 xxx\r\n\r\n", b"HTTP/1.1 200 X\r\n" + b"a: b\r\n" * 99999 + b"\r\n"]
)
async def test_what_is_no_http_is_an_error_of_ours(raw, start):
    url = await raw(once(start))
    async with CloudClient(url, api_key="x") as client:
        with anyio.fail_after(60), pytest.raises(CloudError):
            await client.connect(retries=0)


@pytest.mark.parametrize("wait", ["nan", "inf", "-5", "1e400", "Fri, 31 Dec 99999999999 23:59:59 GMT", "x" * 999])
def test_a_strange_time_to_wait_is_not_waited_for(wait):
    """On the loop's clock: two attempts more, at openai's own pace."""
    asked = []

    def busy(request):
        asked.append(request)
        return httpx2.Response(503, headers={"retry-after": wait, "retry-after-ms": wait}, content=b"{}")

    async def main():
        patch.setattr(
            cloud_client,
            "bounded_reading",
            lambda: {**cloud_gate.bounded_reading(), "transport": httpx2.MockTransport(busy)},
        )
        async with CloudClient("http://cloud/v1", api_key="x", model="smol") as client:
            with pytest.raises(CloudRefused, match="503"):
                await anext(client.stream(REQUEST, None))
            return anyio.current_time()

    with pytest.MonkeyPatch.context() as patch:
        assert still(main) < 30
    assert len(asked) <= 3


class Raising:
    """A client that does not keep its promises."""

    info = None

    def __init__(self, errors):
        self.errors = list(errors)
        self.asked = 0

    async def connect(self, vocab, *, retries):
        self.asked += 1
        if not self.errors:
            await anyio.sleep_forever()
        raise self.errors.pop(0)


def test_the_monitor_outlives_whatever_is_raised():
    errors = [RecursionError("deep"), ValueError("nan"), OverflowError(), UnicodeEncodeError("x", "y", 0, 1, "z")]
    client = Raising([*errors, CloudLost("lost"), MemoryError(), AssertionError()])
    monitor = CloudMonitor(client, VOCABULARY)

    async def main():
        with anyio.move_on_after(3600):
            await monitor.run()

    still(main)
    assert client.asked > 7
    assert monitor.connection is Connection.DOWN
    assert isinstance(monitor.error, PDDError)
