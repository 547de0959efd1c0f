"""Whatever happens around it, a reader gets what there is from where it began: in order, once, and to the end."""

from dataclasses import dataclass, field

import anyio
import pytest
from anyio import wait_all_tasks_blocked
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.server.streams.kept_streams import KeptStreams, StreamLimits
from pdd_llamacpp_adapter.server.streams.stream_reading import StreamReading, send_stream

NAME = "c"
SIZE = 12
"""Bytes that are kept of a stream."""


@dataclass
class Made:
    """A stream, and all that was ever appended to it."""

    stream: object
    said: bytes = b""


@dataclass
class Reader:
    """A client that reads from `place` on. It takes what comes only while its `door` is open."""

    of: Made
    place: int
    heard: bytes = b""
    complete: bool = False
    left: bool = False
    door: anyio.Event = field(default_factory=anyio.Event)
    leave: anyio.Event = field(default_factory=anyio.Event)

    async def run(self):
        await StreamReading(self.of.stream, self.place, 600)({"method": "GET"}, self.receive, self.send)

    async def receive(self):
        await self.leave.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if message["type"] == "http.response.body":
            await self.door.wait()
            self.heard += message["body"]
            self.complete = not message["more_body"]


APPEND = st.tuples(st.just("append"), st.integers(1, SIZE + 4))
JOIN = st.tuples(st.just("join"), st.integers(0, 40))
OTHERS = st.tuples(
    st.sampled_from(["leave", "shut", "open", "delete", "replace", "end", "rest"]), st.integers(0, 9)
)


async def play(steps):
    streams, made, readers, number = KeptStreams(StreamLimits(size=SIZE)), [], [], 0

    def begin():
        made.append(Made(streams.begin(NAME, lambda _: None)[0]))

    begin()
    async with anyio.create_task_group() as tasks:
        for what, value in steps:
            now = made[-1]
            match what:
                case "append" if not now.stream.log.closed:
                    data = bytes((number + i) % 251 for i in range(value))
                    number += value
                    now.stream.append(data)
                    now.said += data
                case "join" if now.stream.log.begin <= value:
                    readers.append(Reader(now, value))
                    readers[-1].door.set()
                    tasks.start_soon(readers[-1].run)
                case "leave" if readers:
                    one = readers[value % len(readers)]
                    one.left = True
                    one.leave.set()
                case "shut" if readers:
                    readers[value % len(readers)].door = anyio.Event()
                case "open" if readers:
                    readers[value % len(readers)].door.set()
                case "end":
                    now.stream.end()
                case "delete" | "replace":
                    if what == "delete":
                        streams.remove(NAME)
                    now.stream.end()  # as its answer does, told to stop
                    begin()
                case _:
                    await wait_all_tasks_blocked()
        for one in made:
            one.stream.end()
        for reader in readers:
            reader.door.set()
    return readers


@examples(300)
@given(steps=st.lists(APPEND | JOIN | OTHERS, max_size=40))
def test_each_reader_gets_exactly_the_rest(steps):
    for reader in anyio.run(play, steps):
        rest = reader.of.said[reader.place :]
        assert rest.startswith(reader.heard)
        if reader.complete:
            assert reader.heard == rest
        elif not reader.left:
            # it was too slow: what it needs next is no longer kept, and its response has no end
            assert reader.place + len(reader.heard) < reader.of.stream.log.begin


@pytest.mark.anyio
async def test_a_reader_that_takes_nothing_stalls_no_other_and_is_given_up():
    stream, _ = KeptStreams(StreamLimits()).begin(NAME, lambda _: None)
    heard = []

    async def stuck(_):
        await anyio.sleep_forever()

    async def quick(message):
        heard.append(message["body"])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send_stream, stream, 0, quick, 600)
        for data in (b"one", b"two"):
            stream.append(data)
            await wait_all_tasks_blocked()
        assert not await send_stream(stream, 0, stuck, 0.01)
        stream.end()
    assert heard == [b"one", b"two", b""]


@pytest.mark.anyio
async def test_of_a_long_stream_a_slow_reader_holds_a_little():
    stream, _ = KeptStreams(StreamLimits()).begin(NAME, lambda _: None)
    stream.append(b"x" * 2**20)
    stream.end()
    pieces = []

    async def send(message):
        pieces.append(len(message["body"]))

    assert await send_stream(stream, 3, send, 600)
    assert (sum(pieces), max(pieces)) == (2**20 - 3, 2**16)


@pytest.mark.anyio
async def test_only_the_head_is_told_without_waiting_for_the_end():
    stream, _ = KeptStreams(StreamLimits()).begin(NAME, lambda _: None)
    sent = []

    async def send(message):
        sent.append(message)

    await StreamReading(stream, 0, 600)({"method": "HEAD"}, anyio.sleep_forever, send)
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
