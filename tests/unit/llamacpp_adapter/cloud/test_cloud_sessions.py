from __future__ import annotations

import pytest

from pdd_core.errors import ConfigurationError
from pdd_core.optin import OptIn
from pdd_llamacpp_adapter.cloud import cloud_sessions
from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
from pdd_llamacpp_adapter.request import AnswerRequest

pytestmark = pytest.mark.anyio
HANDOFFS = [f"{number:032x}" for number in range(8)]


def request(session=None, prompt=(5, 6, 7)):
    return AnswerRequest(prompt_token_ids=prompt, max_tokens=5, session=session)


@pytest.fixture
def cloud(serve, sse):
    """A server that answers everything and sets `lines`."""

    async def start(*lines):
        head = [f"Set-Cookie: {line}" for line in lines]
        routes = {("POST", "/completions"): (200, [sse.chunk([1], finish="stop"), sse.DONE], *head)}
        for name in HANDOFFS:
            routes["DELETE", f"/pdd/handoffs/{name}"] = (200, {"id": name, "confirmed": True}, *head)
        server = await serve(routes)
        sse.count = 0
        return server

    return start


async def answer(client, handoff_id, **asked):
    async for _ in client.stream(request(**asked), OptIn(handoff_id)):
        pass


def sent(server, name):
    return [headers.get(name) for headers in server.headers]


async def test_all_calls_of_a_conversation_have_one_name(cloud):
    server = await cloud()
    async with CloudClient(server.url, model="m") as client:
        await answer(client, HANDOFFS[0], session="chat-1")
        await client.cancel(HANDOFFS[0])
        await answer(client, HANDOFFS[1], session="chat-1")
        await answer(client, HANDOFFS[2], session="chat-2")
        await client.cancel(HANDOFFS[1])
    assert sent(server, "x-session-id") == ["chat-1", "chat-1", "chat-1", "chat-2", "chat-1"]


async def test_a_prompt_names_its_conversation_where_nothing_else_does(cloud):
    server = await cloud()
    async with CloudClient(server.url, model="m") as client:
        await answer(client, HANDOFFS[0])
        await answer(client, HANDOFFS[1])
        await answer(client, HANDOFFS[2], prompt=(5, 6, 8))
    first, again, other = sent(server, "x-session-id")
    assert first == again != other
    assert len(first) == 32


@pytest.mark.parametrize("header", ["X-Flow-Id", ""])
async def test_the_header_is_a_setting(cloud, header):
    server = await cloud()
    async with CloudClient(server.url, model="m", session_header=header) as client:
        await answer(client, HANDOFFS[0], session="chat-1")
    assert sent(server, "x-session-id") == [None]
    assert sent(server, "x-flow-id") == ["chat-1" if header else None]


def test_a_header_that_means_something_else_is_refused():
    with pytest.raises(ConfigurationError, match="Authorization"):
        CloudClient("http://c/v1", session_header="Authorization")


@pytest.mark.parametrize("header", ["X-Session-ID", ""])
async def test_cookies_stay_with_their_conversation(cloud, header):
    server = await cloud("llm-d-session=pod-7; Path=/; HttpOnly", "b=2; Path=/v1")
    async with CloudClient(server.url, model="m", session_header=header) as client:
        await answer(client, HANDOFFS[0], session="chat-1")
        await client.cancel(HANDOFFS[0])
        await answer(client, HANDOFFS[1], session="chat-1")
        await answer(client, HANDOFFS[2], session="chat-2")
    none, *kept, other = sent(server, "cookie")
    assert none is None
    assert other is None, "a cookie of another conversation"
    assert [set(cookies.split("; ")) for cookies in kept] == [{"llm-d-session=pod-7", "b=2"}] * 2


async def test_a_cookie_can_change_and_end(cloud):
    server = await cloud("a=1; Path=/")
    async with CloudClient(server.url, model="m") as client:
        await answer(client, HANDOFFS[0], session="chat")
        for line in ("a=2; Path=/", "a=3; Path=/; Max-Age=0"):
            path = f"/v1/pdd/handoffs/{HANDOFFS[0]}"
            server.answers["DELETE", path] = (200, {"id": HANDOFFS[0], "confirmed": True}, f"Set-Cookie: {line}")
            await client.cancel(HANDOFFS[0])
        await client.cancel(HANDOFFS[0])
    assert sent(server, "cookie") == [None, "a=1", "a=2", None]


@pytest.mark.parametrize(
    "line",
    [
        "secure=1; Secure",
        "far=1; Domain=example.com",
        "elsewhere=1; Path=/other",
        "long=" + "x" * 5000,
        "strange=\u00e4",
        "",
        ";;;=",
    ],
)
async def test_what_is_not_for_us_is_not_sent_back(cloud, line):
    server = await cloud(line)
    async with CloudClient(server.url, model="m") as client:
        await answer(client, HANDOFFS[0], session="chat")
        assert await client.cancel(HANDOFFS[0]) is True
    assert sent(server, "cookie") == [None, None]


async def test_cookies_are_few(cloud):
    server = await cloud(*(f"c{number}=1" for number in range(50)))
    async with CloudClient(server.url, model="m") as client:
        await answer(client, HANDOFFS[0], session="chat")
        server.answers = {key: (*found[:2], "Set-Cookie: more=1") for key, found in server.answers.items()}
        await client.cancel(HANDOFFS[0])
        assert len(client.sessions.cookie_names(HANDOFFS[0])) == 8


def test_conversations_are_forgotten_in_the_end(monkeypatch):
    monkeypatch.setattr(cloud_sessions, "_MOST", 3)
    sessions = cloud_sessions.CloudSessions()
    first = sessions.begin("chat-0", "handoff-0")
    assert sessions.of_handoff("handoff-0") is first
    for number in range(1, 4):
        sessions.begin(f"chat-{number}", f"handoff-{number}")
    forgotten = sessions.of_handoff("handoff-0")
    assert forgotten is not first
    assert sessions.headers(forgotten, "http://c/v1/x")["X-Session-ID"] not in ("chat-0", "handoff-0")
    assert sessions.of_handoff("handoff-3").id == "chat-3"
