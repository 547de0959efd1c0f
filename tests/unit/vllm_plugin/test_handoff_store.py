import sys

import pytest
from example_count import examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pdd_core.errors import HandoffInUse
from pdd_core.handoff import Status
from pdd_core.optin import OptIn
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.handoff_record import HandoffRecord
from pdd_vllm_plugin.handoff_store import NOT_STARTED_TTL_S, HandoffStore
from pdd_vllm_plugin.tombstones import MAX_REFUSED, MAX_TOMBSTONES, TOMBSTONE_TTL_S

LONG = "x" * 20


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


def record(handoff_id, completion_id=f"cmpl-{LONG}", *, clock, started=True, tokens=0):
    made = HandoffRecord(
        opt_in=OptIn(handoff_id), completion_id=completion_id, engine_request_id="e", model="m", tokenizer="d",
        sampling_params={}, created=0.0, touched=clock.now, started=started,
    )  # fmt: skip
    made.output_token_ids.extend(range(tokens))
    return made


def end(store, ended):
    ended.end("stop")
    store.note(ended)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def store(clock):
    return HandoffStore(PDDConfig(max_handoffs=3, max_state_tokens=100, ttl_s=60.0), clock)


def test_a_running_id_is_in_use_and_an_ended_one_makes_way(store, clock):
    first = record("a", clock=clock)
    store.add(first)
    with pytest.raises(HandoffInUse):
        store.add(record("a", clock=clock))
    first.end("stop")
    second = record("a", clock=clock)
    store.add(second)
    assert store.get("a") is second
    assert store.find(f"cmpl-{LONG}") == [second]


def test_an_ended_state_expires_and_a_running_one_does_not(store, clock):
    ended, running = record("a", clock=clock), record("b", clock=clock)
    store.add(ended)
    store.add(running)
    clock.now += 50  # counted from the end
    end(store, ended)
    clock.now += 60
    assert store.get("a") is ended
    clock.now += 1
    assert store.get("b") is running
    assert store.get("a") is None
    assert store.expires_in(running) == 60


def test_a_request_that_never_starts_is_forgotten(store, clock):
    store.add(record("a", clock=clock, started=False))
    clock.now += NOT_STARTED_TTL_S + 1
    assert store.get("a") is None


def test_room_is_made_by_dropping_the_oldest_ended_state(store, clock):
    records = {name: record(name, f"cmpl-{LONG}{name}", clock=clock) for name in "abcd"}
    for name in "abc":
        store.add(records[name])
    end(store, records["b"])
    store.add(records["d"])
    assert [name for name in "abcd" if store.find(f"cmpl-{LONG}{name}")] == ["a", "c", "d"]


def test_what_ended_first_goes_first(store, clock):
    records = {name: record(name, clock=clock) for name in "abc"}
    for one in records.values():
        store.add(one)
    for name in "cab":
        end(store, records[name])
    store.add(record("d", clock=clock))
    assert store.get("c") is None
    assert store.get("a") is records["a"]


def test_tokens_are_bounded_too(store, clock):
    big = record("a", clock=clock, tokens=90)
    store.add(big)
    end(store, big)
    store.add(record("b", clock=clock, tokens=20))
    assert store.get("a") is None


def test_a_state_that_is_larger_than_all_may_be_makes_none_go(store, clock):
    small, huge = record("a", clock=clock, tokens=10), record("b", clock=clock)
    for one in (small, huge):
        store.add(one)
    end(store, small)
    huge.output_token_ids.extend(range(101))
    end(store, huge)
    assert store.get("a") is small
    assert store.get("b") is None


def test_what_an_ended_state_grows_by_counts(store, clock):
    first, second = record("a", clock=clock, tokens=40), record("b", clock=clock, tokens=40)
    for one in (first, second):
        store.add(one)
        end(store, one)
    second.output_token_ids.extend(range(30))  # as a refined prompt that comes late
    store.note(second)
    assert store.get("b") is second
    assert store.get("a") is None


def test_a_state_that_is_gone_counts_no_more(store, clock):
    gone = record("a", clock=clock, tokens=90)
    store.add(gone)
    store.delete("a")
    end(store, gone)
    store.add(record("b", clock=clock, tokens=20))
    assert len(store) == 1
    assert not store.full_of_running()


class Counted(HandoffRecord):
    """Counts how often anybody looks at it."""

    looks = 0

    @property
    def size(self):
        Counted.looks += 1
        return super().size


def test_a_request_that_comes_or_ends_costs_no_look_at_the_others(clock, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "HandoffRecord", Counted)
    store = HandoffStore(PDDConfig(max_handoffs=500), clock)
    records = [record(f"id{number}", clock=clock, tokens=number) for number in range(1000)]
    for number, one in enumerate(records):
        store.add(one)
        if number % 2:
            end(store, one)
    assert Counted.looks <= 4 * len(records)
    assert len(store) == 500


def test_it_says_when_only_running_requests_fill_it(store, clock):
    records = [record(name, clock=clock) for name in "abc"]
    for each in records:
        store.add(each)
    assert store.full_of_running()
    end(store, records[0])
    assert not store.full_of_running()


def test_a_deleted_id_refuses_a_late_post_for_a_minute(store, clock):
    store.refuse("late")
    assert not store.was_deleted("late")
    with pytest.raises(HandoffInUse, match="deleted"):
        store.add(record("late", clock=clock))
    clock.now += TOMBSTONE_TTL_S + 1
    store.add(record("late", clock=clock))


def test_deleting_also_remembers_the_completions_id(store, clock):
    store.add(record("a", clock=clock))
    store.delete("a")
    assert store.was_deleted(f"cmpl-{LONG}")


def test_a_flood_of_unknown_ids_makes_no_deletion_be_forgotten(store, clock):
    store.add(record("a", clock=clock))
    store.delete("a")
    assert store.refuse("late")
    assert sum(store.refuse(f"id{number}") for number in range(MAX_REFUSED + 10)) == MAX_REFUSED - 1
    assert store.was_deleted("a")
    for name in ("a", "late", "id0"):
        with pytest.raises(HandoffInUse, match="deleted"):
            store.check_free(name)
    assert store.can_refuse("late")
    assert not store.can_refuse("more")
    clock.now += TOMBSTONE_TTL_S + 1
    assert store.can_refuse("more")


def test_the_newest_deleted_states_are_remembered(store, clock):
    for number in range(MAX_TOMBSTONES // 2 + 1):  # each has two names
        store.add(record(f"id{number}", f"cmpl-{LONG}{number}", clock=clock))
        store.delete(f"id{number}")
    assert not store.was_deleted("id0")
    assert store.was_deleted("id1")


def test_a_guessable_completion_id_names_nothing(store, clock):
    store.add(record("a" * 32, "chatcmpl-my-job-1", clock=clock))
    assert store.find("chatcmpl-my-job-1") == []
    assert len(store.find("a" * 32)) == 1


def test_equal_completion_ids_are_all_found(store, clock):
    store.add(record("a", clock=clock))
    store.add(record("b", clock=clock))
    assert len(store.find(f"cmpl-{LONG}")) == 2


class StoreMachine(RuleBasedStateMachine):
    """Whatever happens: running states stay, bounds hold, and the two indexes agree."""

    ids = st.sampled_from([letter * 16 for letter in "abcdefgh"])

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self.store = HandoffStore(PDDConfig(max_handoffs=4, max_state_tokens=50, ttl_s=60.0), self.clock)
        self.running = {}

    @rule(handoff_id=ids, tokens=st.integers(0, 30), completion=st.sampled_from([LONG + "1", LONG + "2"]))
    def add(self, handoff_id, tokens, completion):
        new = record(handoff_id, f"cmpl-{completion}", clock=self.clock, tokens=tokens)
        try:
            self.store.add(new)
        except HandoffInUse:
            assert handoff_id in self.running or self.store.was_deleted(handoff_id)
        else:
            self.running[handoff_id] = new

    @rule(handoff_id=ids)
    def end(self, handoff_id):
        if handoff_id in self.running:
            end(self.store, self.running.pop(handoff_id))

    @rule(handoff_id=ids, tokens=st.integers(1, 30))
    def grow(self, handoff_id, tokens):
        if (grown := self.store.get(handoff_id)) is not None:
            grown.output_token_ids.extend(range(tokens))
            self.store.note(grown)

    @rule(handoff_id=ids)
    def delete(self, handoff_id):
        self.running.pop(handoff_id, None)
        if self.store.get(handoff_id) is not None:
            self.store.delete(handoff_id)

    @rule(seconds=st.floats(0, 100))
    def wait(self, seconds):
        self.clock.now += seconds

    @invariant()
    def running_states_can_be_read(self):
        for handoff_id, expected in self.running.items():
            assert self.store.get(handoff_id) is expected
            assert expected in self.store.find(expected.completion_id)

    @invariant()
    def bounds_hold(self):
        ended = len(self.store) - len(self.running)
        held = sum(one.size for one in self.store._records.values())
        assert (len(self.store) <= 4 and held <= 50) or ended == 0
        assert self.store._held == held


StoreMachine.TestCase.settings = examples(60, stateful_step_count=30)
TestStoreMachine = StoreMachine.TestCase


def test_status_follows_the_first_ending_only(clock):
    made = record("a", clock=clock)
    made.end("length", "pdd_handoff")
    made.end("abort")
    assert made.status is Status.HANDED_OFF
