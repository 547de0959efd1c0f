"""The server stops, or a client leaves, before an answer has begun: while its request is received or prepared."""

import json
import logging
import os
import signal
import threading

import anyio
import pytest

from pdd_core.errors import ServerStopping
from pdd_llamacpp_adapter.server.answers.answering import Call, RunningAnswer
from pdd_llamacpp_adapter.server.answers.prepared_answer import PreparedAnswer
from pdd_llamacpp_adapter.server.completions.completion_routes import PlainText
from pdd_llamacpp_adapter.server.prompts.prepare import answer_request
from pdd_llamacpp_adapter.server.run import serve
from pdd_llamacpp_adapter.server.wire.failures import SHUTTING_DOWN
from pdd_llamacpp_adapter.server.wire.sampling_fields import Sampling

pytestmark = [pytest.mark.anyio, pytest.mark.timeout(60)]

BODIES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
}


@pytest.fixture
def running(caplog):
    """Serve `service`; gives its port, and how to end it as a signal does. Its log has no traceback."""

    async def start(tasks, service, grace=60.0):
        ports, started, returned = [], anyio.Event(), anyio.Event()

        def on_started(url):
            ports.append(int(url.rsplit(":", 1)[1]))
            started.set()

        async def main():
            await serve(service, port=0, grace=grace, on_started=on_started)
            returned.set()

        tasks.start_soon(main)
        await started.wait()
        return ports[0], returned

    caplog.set_level(logging.DEBUG)
    yield start
    assert [record for record in caplog.records if record.exc_info or record.levelno >= logging.ERROR] == []


@pytest.fixture
def slow_reading(monkeypatch):
    """Makes a runtime read prompts for as long as a test wants: `begun` is set, and `go_on` waited for."""

    class Reading:
        def __init__(self):
            self.begun, self.go_on = threading.Event(), threading.Event()

        def of(self, runtime):
            tokenize = runtime.vocab.tokenize

            def slow(text, **options):
                self.begun.set()
                self.go_on.wait()
                return tokenize(text, **options)

            monkeypatch.setattr(runtime.vocab, "tokenize", slow)

    reading = Reading()
    yield reading
    reading.go_on.set()


def head(path, length):
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


async def rest_of(stream):
    heard = b""
    with anyio.fail_after(30):
        try:
            while True:
                heard += await stream.receive()
        except anyio.EndOfStream:
            return heard


def assert_refused(heard):
    top, _, body = heard.partition(b"\r\n\r\n")
    assert top.startswith(b"HTTP/1.1 503 "), heard
    assert b"x-should-retry: false" in top
    assert json.loads(body)["error"]["code"] == "server_shutting_down"


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_body_that_comes_after_the_signal_is_refused(service, running, until, path, stream):
    made = service()
    body = json.dumps({**BODIES[path], "stream": stream}).encode()
    async with anyio.create_task_group() as tasks:
        port, returned = await running(tasks, made)
        async with await anyio.connect_tcp("127.0.0.1", port) as client:
            await client.send(head(path, len(body)) + body[:10])
            await until(lambda: made.incoming)
            os.kill(os.getpid(), signal.SIGTERM)
            await until(lambda: made.stopping)
            await client.send(body[10:])
            assert_refused(await rest_of(client))
        await returned.wait()
    assert made.runtime.sessions == []


async def test_a_body_that_never_comes_is_refused_behind_the_grace(service, running, until):
    made = service()
    async with anyio.create_task_group() as tasks:
        port, returned = await running(tasks, made, grace=0.05)
        async with await anyio.connect_tcp("127.0.0.1", port) as client:
            await client.send(head("/v1/chat/completions", 1000) + b'{"messages')
            await until(lambda: made.incoming)
            os.kill(os.getpid(), signal.SIGTERM)
            assert_refused(await rest_of(client))
        await returned.wait()


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_prompt_that_is_being_read_is_refused_and_holds_nothing_up(
    service, running, slow_reading, path, stream
):
    made = service()
    slow_reading.of(made.runtime)
    body = json.dumps({**BODIES[path], "stream": stream}).encode()
    async with anyio.create_task_group() as tasks:
        port, returned = await running(tasks, made)
        async with await anyio.connect_tcp("127.0.0.1", port) as client:
            await client.send(head(path, len(body)) + body)
            await anyio.to_thread.run_sync(slow_reading.begun.wait)
            os.kill(os.getpid(), signal.SIGTERM)
            assert_refused(await rest_of(client))
        await returned.wait()
        assert not slow_reading.go_on.is_set()
    assert made.runtime.sessions == []


async def test_an_answer_that_would_begin_after_the_signal_does_not(service):
    made = service()
    call = Call(service=made, runtime=made.runtime, route="/", request_id="r", answer_id="chatcmpl-1")
    answer = RunningAnswer(
        call,
        PreparedAnswer(answer_request([1], Sampling(), made.runtime), PlainText()),
        paced=True,
        described=None,
    )
    await made.shut_down(0)
    emitted = []

    async def emit(step):
        emitted.append(step)

    await answer.run(emit)
    assert (answer.error, answer.status, emitted) == (SHUTTING_DOWN, "failed", [])
    assert made.runtime.sessions == []
    assert (made.queue.running, made.queue.waiting) == (0, 0)


async def test_a_request_that_comes_through_while_the_server_stops_is_refused(service):
    made = service()
    await made.shut_down(0)
    with pytest.raises(ServerStopping):
        await made.incoming.receive(anyio.sleep_forever)
    assert not made.incoming


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_while_its_prompt_is_read_takes_no_place(
    service, served, until, slow_reading, path, stream
):
    made = service([60.0])
    slow_reading.of(made.runtime)
    async with served(made) as client:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(
                lambda: client.post(path[3:], body={**BODIES[path], "stream": stream}, cast_to=object)
            )
            await anyio.to_thread.run_sync(slow_reading.begun.wait)
            tasks.cancel_scope.cancel()
        slow_reading.go_on.set()
        await until(lambda: not made.incoming)
        made.runtime.script = ["B"]
        answer = await client.completions.create(model="tiny", prompt="x")  # the one place is free
        assert answer.choices[0].text == "B"
        assert (made.queue.running, made.queue.waiting) == (0, 0)
