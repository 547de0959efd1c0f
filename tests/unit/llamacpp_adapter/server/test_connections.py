import json
from contextlib import asynccontextmanager

import anyio
import h11
import pytest

from pdd_llamacpp_adapter.server import connections
from pdd_llamacpp_adapter.server.run import serve
from pdd_llamacpp_adapter.server.wire import json_body

pytestmark = pytest.mark.anyio

HOST = b"host: localhost\r\n"
CHAT = b"POST /v1/chat/completions HTTP/1.1\r\n" + HOST
GET = b"GET /version HTTP/1.1\r\n" + HOST + b"\r\n"
ASK = b'{"messages": [{"role": "user", "content": "Hi"}], "stream": true}'


class Peer:
    """A raw connection, with h11's view of what comes back."""

    def __init__(self, stream):
        self.stream = stream
        self.http = h11.Connection(h11.CLIENT)
        self.http.send(h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")]))
        self.http.send(h11.EndOfMessage())

    async def send(self, data):
        await self.stream.send(data)

    async def trickle(self, data):
        """Send byte by byte until the server has enough of it."""
        for byte in data:
            try:
                await self.stream.send(bytes([byte]))
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                return
            await anyio.sleep(0.002)

    async def next_data(self):
        """What comes next; nothing at the end."""
        try:
            return await self.stream.receive()
        except (anyio.EndOfStream, anyio.BrokenResourceError):
            return b""

    async def event(self):
        while (event := self.http.next_event()) is h11.NEED_DATA:
            self.http.receive_data(await self.next_data())
        return event

    async def answer(self):
        """The status of a whole answer, and its body's error code, if it has one."""
        response, body = await self.event(), b""
        while not isinstance(event := await self.event(), h11.EndOfMessage):
            body += event.data
        found = json.loads(body) if body.startswith(b"{") else {}
        return response.status_code, found.get("error", {}).get("code")

    async def ended(self):
        while await self.next_data():
            pass


@pytest.fixture
def peers():
    """Serve a service; makes connections to it."""

    @asynccontextmanager
    async def run(service):
        urls, started = [], anyio.Event()

        async def main():
            await serve(service, port=0, on_started=lambda url: (urls.append(url), started.set()))

        async def connect():
            stream = await anyio.connect_tcp("127.0.0.1", int(urls[0].rsplit(":", 1)[1]))
            opened.append(stream)
            return Peer(stream)

        opened = []
        with anyio.fail_after(60):
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(main)
                await started.wait()
                yield connect
                for stream in opened:
                    await stream.aclose()
                tasks.cancel_scope.cancel()

    return run


async def test_a_connection_that_says_nothing_is_closed(service, peers, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.05)
    async with peers(service()) as connect:
        peer = await connect()
        assert await peer.next_data() == b""


async def test_a_head_that_trickles_in_is_given_up(service, peers, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    async with peers(service()) as connect, anyio.create_task_group() as tasks:
        peer = await connect()
        tasks.start_soon(peer.trickle, GET[:-2] + b"x: " + b"y" * 10**5)
        assert await peer.answer() == (408, "request_timeout")
        await peer.ended()
        tasks.cancel_scope.cancel()


async def test_an_idle_connection_is_closed_after_an_answer(service, peers, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_S", 0.3)
    async with peers(service()) as connect:
        peer = await connect()
        await peer.send(GET)
        assert await peer.answer() == (200, None)
        assert await peer.next_data() == b""


@pytest.mark.parametrize(
    "head",
    [GET[:-2] + b"x: " + b"y" * 10**7, GET[:-2] + b"a: b\r\n" * 200_000 + b"\r\n", b"GET /" + b"y" * 10**7],
    ids=["one header", "many headers", "path"],
)
async def test_a_head_that_is_too_large_is_refused_before_all_of_it_is_read(service, peers, head):
    async with peers(service(api_key="k")) as connect, anyio.create_task_group() as tasks:
        peer = await connect()

        async def send():
            for start in range(0, len(head), 2**16):
                try:
                    await peer.send(head[start : start + 2**16])
                except anyio.BrokenResourceError:
                    return

        tasks.start_soon(send)
        assert await peer.answer() == (431, "head_too_large")
        tasks.cancel_scope.cancel()
        other = await connect()
        await other.send(GET)
        assert await other.answer() == (200, None)


async def test_a_head_that_comes_in_one_piece_is_measured_too(service, peers):
    async with peers(service(api_key="k")) as connect:
        for further in (b"a: b\r\n" * 101, b"x: " + b"y" * 40_000 + b"\r\n"):
            peer = await connect()
            await peer.send(GET[:-2] + further + b"\r\n")
            assert await peer.answer() == (431, "head_too_large")


async def test_a_head_of_usual_length_is_read(service, peers):
    async with peers(service()) as connect:
        peer = await connect()
        await peer.send(GET[:-2] + b"cookie: " + b"y" * 30_000 + b"\r\n" + b"a: b\r\n" * 90 + b"\r\n")
        assert await peer.answer() == (200, None)


async def test_what_is_no_http_is_a_400(service, peers):
    async with peers(service()) as connect:
        peer = await connect()
        await peer.send(b"\x16\x03\x01 hello\r\n\r\n")
        assert await peer.answer() == (400, "invalid_http")
        await peer.ended()


async def test_a_body_that_trickles_in_is_given_up(service, peers, monkeypatch):
    monkeypatch.setattr(json_body, "BODY_S", 0.3)
    made = service()
    async with peers(made) as connect, anyio.create_task_group() as tasks:
        peer = await connect()
        await peer.send(CHAT + b"content-length: 100000\r\n\r\n")
        tasks.start_soon(peer.trickle, b" " * 10**5)
        assert await peer.answer() == (408, "request_timeout")
        tasks.cancel_scope.cancel()
    assert not made.runtime.sessions


async def test_a_body_that_goes_on_after_its_answer_is_not_read_for_ever(service, peers, monkeypatch):
    monkeypatch.setattr(connections, "REST_S", 0.3)
    async with peers(service(api_key="k")) as connect, anyio.create_task_group() as tasks:
        peer = await connect()
        await peer.send(CHAT + b"content-length: 100000\r\n\r\n")
        tasks.start_soon(peer.trickle, b" " * 10**5)
        assert await peer.answer() == (401, "invalid_api_key")
        await peer.ended()
        tasks.cancel_scope.cancel()


async def test_a_refused_body_that_comes_to_its_end_leaves_the_connection_open(service, peers):
    async with peers(service(api_key="k")) as connect:
        peer = await connect()
        for _ in range(2):
            await peer.send(CHAT + b"content-length: %d\r\n\r\n" % len(ASK))
            assert await peer.answer() == (401, "invalid_api_key")
            await peer.send(ASK)
            peer.__init__(peer.stream)


async def test_no_limit_of_these_cuts_a_long_stream(service, peers, monkeypatch):
    for name in ("HEAD_S", "REST_S", "LEAVING_S"):
        monkeypatch.setattr(connections, name, 0.05)
    monkeypatch.setattr(json_body, "BODY_S", 0.05)
    made = service(["A", 0.5, "B", 0.5, "C"])
    async with peers(made) as connect:
        peer = await connect()
        await peer.send(CHAT + b"content-length: %d\r\n\r\n" % len(ASK) + ASK)
        assert await peer.answer() == (200, None)
    assert made.runtime.sessions[0].ended


async def test_a_client_that_reads_nothing_of_its_answers_is_gone_in_the_end(service, peers, monkeypatch):
    """The pages are answers that are longer than what the system keeps, if they are asked for often enough."""
    monkeypatch.setattr(connections, "UNREAD_S", 0.3)
    async with peers(service()) as connect, anyio.create_task_group() as tasks:
        peer = await connect()
        page = b"GET /ui/chat.js HTTP/1.1\r\n" + HOST + b"\r\n"

        async def ask():
            while True:
                try:
                    await peer.send(page * 1000)
                except anyio.BrokenResourceError:
                    return tasks.cancel_scope.cancel()

        tasks.start_soon(ask)


async def test_one_connection_too_many_is_told_so_and_the_others_go_on(service, peers, until, caplog):
    async with peers(service(max_connections=3)) as connect:
        first = [await connect() for _ in range(3)]
        for peer in first:
            await peer.send(GET)
            assert await peer.answer() == (200, None)
        for _ in range(2):
            refused = await connect()
            assert await refused.answer() == (503, "too_many_connections")
        first[0].__init__(first[0].stream)
        await first[0].send(GET)
        assert await first[0].answer() == (200, None)
        assert caplog.text.count("3 connections are open") == 1
        await first[1].stream.aclose()

        async def let_in():
            peer = await connect()
            await peer.send(GET)
            return (await peer.answer())[0] == 200

        while not await let_in():
            await anyio.sleep(0.01)


async def test_connections_far_beyond_the_most_wait_for_their_turn(service, peers):
    async with peers(service(max_connections=1)) as connect:
        crowd = [await connect() for _ in range(40)]
        for peer in crowd[1:]:
            assert await peer.answer() == (503, "too_many_connections")
            await peer.stream.aclose()
        await crowd[0].send(GET)
        assert await crowd[0].answer() == (200, None)
