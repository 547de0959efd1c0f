"""A prompt's cells over HTTP, by the route and by POST."""

from __future__ import annotations

import anyio
import pytest
from cells_by_hand import BY_HEAD, frames_of, geometry

from pdd_core.errors import CloudLost, CloudRefused, CloudUnreachable, InvalidCells
from pdd_core.kv.frames import MEDIA_TYPE
from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
from pdd_llamacpp_adapter.cloud.cloud_route import Way

pytestmark = pytest.mark.anyio

HANDOFF = "0123456789abcdef0123"
PATH = f"/pdd/handoffs/{HANDOFF}/kv"
GEOMETRY = geometry(BY_HEAD)
FRAMES = list(frames_of(100, 500, GEOMETRY))
PLACES = [
    (number, start, end) for start, end in ((384, 500), (256, 384), (128, 256), (100, 128)) for number in (0, 1)
]


@pytest.fixture
def fetched(serve):
    """Ask a server that answers with `answer`; returns what came of it, and the server."""

    async def fetch(answer, *, start=100, end=500, way=Way.ROUTES, **options):
        asked = ("GET", f"{PATH}?from={start}&to={end}") if way is Way.ROUTES else ("POST", "/completions")
        server = await serve({asked: answer})
        async with CloudClient(server.url, model="m") as client:
            client.route.way = way
            frames = client.cells(HANDOFF, start, end, GEOMETRY, **options)
            got = [(frame.part, frame.start, frame.start + frame.tokens) async for frame in frames]
        return got, server

    return fetch


@pytest.mark.parametrize("way", Way)
async def test_frames_come_from_the_back(fetched, way):
    sizes = []
    got, server = await fetched((200, FRAMES), way=way, on_bytes=sizes.append)
    assert got == PLACES
    assert sum(sizes) == sum(map(len, FRAMES))
    assert server.headers[0]["accept"].startswith(MEDIA_TYPE)
    assert server.headers[0]["accept-encoding"] == "identity"
    if way is Way.POST:
        asked = server.requests[0][2]["vllm_xargs"]
        assert asked == {"pdd_cells": HANDOFF, "pdd_from": 100, "pdd_to": 500}


async def test_any_chunks_will_do(fetched):
    whole = b"".join(FRAMES)
    assert (await fetched((200, [whole[i : i + 999] for i in range(0, len(whole), 999)])))[0] == PLACES


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        ((404, {"error": {"message": "gone", "code": 404}}), CloudRefused),
        ((200, FRAMES[:3]), CloudLost),
        ((200, [*FRAMES[:3], FRAMES[3][:50]]), CloudLost),
        ((200, [FRAMES[1], FRAMES[0]]), InvalidCells),
        ((200, [b"<html>a captive portal</html>"]), InvalidCells),
        ((200, [FRAMES[0][:-1] + b"?"]), InvalidCells),
        ((200, FRAMES, "Content-Encoding: gzip"), CloudRefused),
    ],
)
async def test_what_is_no_stream_of_cells_has_a_type(fetched, answer, error):
    with pytest.raises(error):
        await fetched(answer)


async def test_a_stream_that_breaks_off_is_lost(fetched, sse):
    with pytest.raises(CloudLost, match="broke off"):
        await fetched((200, [*FRAMES[:2], sse.BREAK]))


async def test_a_silent_stream_is_lost(fetched, sse):
    with pytest.raises(CloudLost, match=r"no byte of the cells within 1 s"):
        await fetched((200, [*FRAMES[:2], sse.WAIT]), silence_s=1.0)


async def test_without_a_server_there_are_no_cells():
    async with CloudClient("http://127.0.0.1:9/v1", model="m") as client:
        with pytest.raises(CloudUnreachable):
            await anext(client.cells(HANDOFF, 0, 9, GEOMETRY))


async def test_closing_the_generator_closes_the_connection():
    closed = anyio.Event()

    async def handle(stream):
        async with stream:
            await stream.receive()
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            await stream.send(head + f"{len(FRAMES[0]):x}\r\n".encode() + FRAMES[0] + b"\r\n")
            try:
                while True:
                    await stream.receive()
            except (anyio.EndOfStream, anyio.BrokenResourceError):
                closed.set()

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, handle)
        port = listener.extra(anyio.abc.SocketAttribute.local_port)  # noqa: S610 - not Django
        async with CloudClient(f"http://127.0.0.1:{port}/v1", model="m") as client:
            frames = client.cells(HANDOFF, 100, 500, GEOMETRY)
            assert (await anext(frames)).start == 384
            await frames.aclose()
            with anyio.fail_after(20):
                await closed.wait()
        tasks.cancel_scope.cancel()
