from __future__ import annotations

import asyncio
from contextlib import suppress

import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st
from still_time import StillTimeLoop

from pdd_cli.link import BUCKET_S, Link, TokenBucket, carry, emulated
from pdd_core.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "bit_s", "rtt_s"),
    [
        ("100mbit", 1e8, 0.02),
        ("20mbit/50ms", 2e7, 0.05),
        ("1.5Gbit/0ms", 1.5e9, 0.0),
        (" 500kbit ", 5e5, 0.02),
    ],
)
def test_a_link_is_read(text: str, bit_s: float, rtt_s: float) -> None:
    assert Link.parse(text) == Link(bit_s, rtt_s)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "100",
        "100 mbit",
        "mbit",
        "-1mbit",
        "nanmbit",
        "100mb",
        "100mbit/30",
        "1kbit",
        "999gbit",
        "1mbit/99999ms",
    ],
)
def test_what_is_no_link_is_named(text: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        Link.parse(text)
    assert repr(text) in str(refused.value)


def test_a_link_has_words() -> None:
    assert str(Link.parse("20mbit/50ms")) == "20 Mbit/s, round trip 50 ms"
    assert Link.parse("20mbit").bytes_per_s == 2.5e6


@given(st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 2)), min_size=1))
def test_a_bucket_never_lets_more_pass_than_the_link_and_its_bucket_do(sent: list[tuple[int, float]]) -> None:
    now, total = 0.0, 0
    bucket = TokenBucket(1000.0, lambda: now)
    for size, pause in sent:
        now += pause
        total += size
        passed = bucket.passed_at(size)
        assert passed >= total / 1000 - BUCKET_S - 1e-6
        assert passed >= now - BUCKET_S
    assert bucket.passed_at(0) == passed


class Sink:
    """A writer that notes when what came."""

    def __init__(self) -> None:
        self.came: list[tuple[float, int]] = []
        self.data = b""
        self.ended_at: float | None = None
        self.room = asyncio.Event()
        self.room.set()

    def write(self, data: bytes) -> None:
        self.came.append((asyncio.get_running_loop().time(), len(data)))
        self.data += data

    async def drain(self) -> None:
        await self.room.wait()

    def write_eof(self) -> None:
        self.ended_at = asyncio.get_running_loop().time()


def in_still_time(main) -> None:
    anyio.run(main, backend_options={"loop_factory": StillTimeLoop})


def source(data: bytes, *, ended: bool = True) -> asyncio.StreamReader:
    reader = asyncio.StreamReader()
    reader.feed_data(data)
    if ended:
        reader.feed_eof()
    return reader


def bucket(bytes_per_s: float) -> TokenBucket:
    return TokenBucket(bytes_per_s, asyncio.get_running_loop().time)


def test_bytes_come_whole_in_order_and_at_the_links_pace() -> None:
    async def main() -> None:
        data, sink = bytes(range(250)) * 400, Sink()  # 100,000 bytes
        await carry(source(data), sink, bucket(50_000), delay=0.3)
        assert sink.data == data
        assert sink.came[0][0] >= 0.3
        assert sink.ended_at == pytest.approx(2.0 + 0.3, abs=BUCKET_S + 1e-6)

    in_still_time(main)


def test_the_first_byte_is_underway_for_the_whole_delay() -> None:
    async def main() -> None:
        sink = Sink()
        await carry(source(b"x"), sink, bucket(1e9), delay=0.3)
        assert sink.came[0][0] >= 0.3

    in_still_time(main)


def test_connections_share_a_link_and_take_turns() -> None:
    async def main() -> None:
        sinks, shared = [Sink(), Sink()], bucket(50_000)
        await asyncio.gather(*(carry(source(b"x" * 50_000), sink, shared, delay=0) for sink in sinks))
        assert [sink.ended_at for sink in sinks] == pytest.approx([2.0, 2.0], abs=0.1)

    in_still_time(main)


def test_a_pause_is_not_made_up_for() -> None:
    async def main() -> None:
        reader, sink = source(b"x" * 1000, ended=False), Sink()
        carrying = asyncio.create_task(carry(reader, sink, bucket(1000), delay=0))
        await asyncio.sleep(10)
        reader.feed_data(b"y" * 1000)
        reader.feed_eof()
        await carrying
        assert sink.ended_at == pytest.approx(11.0, abs=BUCKET_S + 1e-6)

    in_still_time(main)


def test_a_receiver_without_room_stops_the_sender() -> None:
    async def main() -> None:
        reader, sink = source(b"x" * 1_000_000), Sink()
        sink.room.clear()
        carrying = asyncio.create_task(carry(reader, sink, bucket(100_000), delay=0))
        await asyncio.sleep(100)
        assert len(sink.data) <= 1024
        assert len(await reader.read(1_000_000)) > 900_000  # what was not taken is still with the sender
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)

    in_still_time(main)


async def talk(url: str, said: bytes) -> bytes:
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(said)
    writer.write_eof()
    answer = await reader.read()
    writer.close()
    await writer.wait_closed()
    return answer


def over_a_link(serve, main) -> None:
    async def run() -> None:
        async with asyncio.timeout(60), await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with emulated(Link(1e9, 0.0), f"http://127.0.0.1:{port}") as url:
                assert url != f"http://127.0.0.1:{port}"
                await main(url)

    asyncio.run(run())


def test_a_server_answers_several_connections_at_once() -> None:
    async def echo(reader, writer) -> None:
        writer.write(await reader.read())
        writer.close()

    async def main(url: str) -> None:
        said = [bytes([number]) * 300_000 for number in range(5)]
        assert await asyncio.gather(*(talk(url, one) for one in said)) == said

    over_a_link(echo, main)


def test_a_server_that_hangs_up_ends_the_connection() -> None:
    async def hang_up(_, writer) -> None:
        writer.transport.abort()

    async def main(url: str) -> None:
        with suppress(OSError):  # a reset says the same
            assert await talk(url, b"hello") == b""

    over_a_link(hang_up, main)


def test_a_client_that_leaves_frees_the_server() -> None:
    left = asyncio.Event()

    async def endless(_, writer) -> None:
        try:
            while True:
                writer.write(b"x" * 65_536)
                await writer.drain()
        except OSError:
            left.set()
        finally:
            writer.transport.abort()

    async def main(url: str) -> None:
        host, port = url.removeprefix("http://").split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        assert await reader.read(10)
        writer.transport.abort()
        await left.wait()

    over_a_link(endless, main)


def test_the_path_stays_and_tls_is_refused() -> None:
    async def main() -> None:
        async with emulated(Link(1e9), "http://127.0.0.1:9/v1") as url:
            assert url.endswith("/v1")
        with pytest.raises(ConfigurationError, match="https://host"):
            async with emulated(Link(1e9), "https://host/v1"):
                pass

    asyncio.run(main())
