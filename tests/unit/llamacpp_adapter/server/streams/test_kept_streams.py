"""Which streams there are, against a plain list of them; and how long one is kept that nobody reads."""

import pytest
from example_count import examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pdd_core.errors import ConfigurationError, DeviceBusy
from pdd_llamacpp_adapter.server.streams.kept_streams import REPLACED, UNREAD, KeptStreams, StreamLimits
from pdd_llamacpp_adapter.server.wire.failures import DELETED

TTL = 10.0
NAMES = st.sampled_from(["a", "b", "c", "d"])


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


class Streams(RuleBasedStateMachine):
    @initialize(count=st.integers(1, 3))
    def start(self, count):
        self.clock, self.count = Clock(), count
        self.streams = KeptStreams(StreamLimits(count=count, size=100, ttl=TTL), self.clock)
        self.known = {}
        """By its name, what there has to be: the stream, why its answer was stopped, and when it was read last and
        how long it stays after that."""
        self.gone = []

    def fresh(self):
        for name, (stream, _, since) in list(self.known.items()):
            if stream.log.closed and self.clock.now - since[0] >= since[1]:
                del self.known[name]
        return self.known

    @rule(name=NAMES)
    def begin(self, name):
        stopped = []
        there = self.fresh()
        running = [one for one, _, _ in there.values() if not one.log.closed]
        if name not in there and len(running) == len(there) == self.count:
            with pytest.raises(DeviceBusy):
                self.streams.begin(name, stopped.append)
            return
        before = there.pop(name, None)
        stream, replaced = self.streams.begin(name, stopped.append)
        assert replaced is (before and before[0])
        if before:
            assert before[1] == ([] if before[0].log.closed else [REPLACED])
        left = {one.conversation_id for one in self.streams.all()} - {name}
        for other in set(there) - left:  # one that had ended made room
            assert len(there) == self.count
            assert there[other][0].log.closed
            del there[other]
        self.known[name] = (stream, stopped, [self.clock.now, TTL])

    @rule(name=NAMES)
    def end(self, name):
        if name in self.fresh():
            stream, _, since = self.known[name]
            if not stream.log.closed:
                since[0] = self.clock.now
            stream.end()
            assert (stream.completed_at == 0) is False

    @rule(name=NAMES)
    def remove(self, name):
        stream, stopped, _ = self.fresh().pop(name, (None, None, None))
        self.streams.remove(name)
        if stream is not None:
            assert stopped == ([] if stream.log.closed else [DELETED])

    @rule(name=NAMES)
    def read(self, name):
        if name in self.fresh():
            stream, _, since = self.known[name]
            with stream.read():
                self.clock.now += 2 * TTL
                assert stream in self.streams.all()
                stream.append(b"x")
            since[:] = self.clock.now, TTL

    @rule(name=NAMES, within=st.sampled_from([1.0, TTL - 1, 2 * TTL]))
    def leave(self, name, within):
        if name in self.fresh():
            stream, _, since = self.known[name]
            stream.expect_reader(within)
            since[1] = min(within, TTL)

    @rule(seconds=st.sampled_from([1.0, TTL - 1, TTL]))
    def wait(self, seconds):
        self.clock.now += seconds

    @invariant()
    def the_same_are_there(self):
        there = self.fresh()
        assert {stream.conversation_id: stream for stream in self.streams.all()} == {
            name: stream for name, (stream, _, _) in there.items()
        }
        assert len(there) <= self.count
        for name in "abcd":
            assert self.streams.get(name) is (there[name][0] if name in there else None)
        assert all(not stopped for _, stopped, _ in there.values())


TestStreams = Streams.TestCase
TestStreams.settings = examples(100, stateful_step_count=20)


def test_an_answer_that_nobody_reads_is_given_up():
    clock, stopped = Clock(), []
    stream, _ = KeptStreams(StreamLimits(ttl=TTL), clock).begin("a", stopped.append)
    with stream.read():
        clock.now = 100.0
        stream.append(b"one")
    clock.now += TTL - 1
    stream.append(b"two")
    assert stopped == []
    clock.now += 1
    stream.append(b"three")
    assert stopped == [UNREAD]
    assert stream.log.end == len(b"onetwothree")


def test_an_answer_is_given_up_sooner_whose_reader_has_left_for_good():
    clock, stopped = Clock(), []
    stream, _ = KeptStreams(StreamLimits(ttl=TTL), clock).begin("a", stopped.append)
    with stream.read():
        stream.expect_reader(2)
        clock.now = 100.0
        stream.append(b"one")
    with stream.read():
        pass  # it has come back
    clock.now += TTL - 1
    stream.append(b"two")
    stream.expect_reader(2)
    assert stopped == []
    stream.append(b"three")
    assert stopped == [UNREAD]


def test_a_stream_that_was_refused_takes_no_others_place():
    streams = KeptStreams(StreamLimits())
    first, _ = streams.begin("a", lambda _: None)
    second, _ = streams.begin("a", lambda _: None)
    streams.withdraw(first)
    assert streams.get("a") is second
    streams.withdraw(second)
    assert streams.all() == []


@pytest.mark.parametrize(
    ("limit", "setting"), [("count", "max_streams"), ("size", "stream_mib"), ("ttl", "stream_ttl_s")]
)
def test_a_limit_that_cannot_work_is_named(limit, setting):
    with pytest.raises(ConfigurationError, match=setting):
        StreamLimits(**{limit: -1})
