from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.history import RefinedHistory, held_of
from pdd_llamacpp_adapter.session.device_reading import Reading, common_prefix


@st.composite
def kept_indices(draw, length):
    kept = draw(st.sets(st.integers(0, length - 1)))
    return sorted({*kept, length - 1})


class Device:
    """A memory that does what a reading says, token by token, and the cloud's answer beside it."""

    def __init__(self, prompt, held=(), history=None):
        self.reading = Reading(prompt)
        self.answer = []
        found = held_of(prompt, held, history)
        self.memory = list(held[: found.length])
        self.reading.resume(found.covered, found.history)
        self.head = len(self.memory)

    def process(self, count):
        ids = self.reading.pending(self.answer, count)
        self.memory += ids
        self.reading.processed += len(ids)

    def drop(self, length):
        self.memory = self.memory[:length]


steps = st.lists(
    st.one_of(
        st.tuples(st.just("process"), st.integers(1, 9)),
        st.tuples(st.just("answer"), st.integers(100, 120)),
        st.tuples(st.just("refine"), st.none()),
        st.tuples(st.just("reread"), st.none()),
        st.tuples(st.just("restore"), st.none()),
    ),
    max_size=25,
)


@given(st.data(), st.lists(st.integers(0, 5), min_size=1, max_size=24), steps)
def test_whenever_a_prompt_is_swapped_the_memory_is_what_was_to_be_read(data, prompt, history):
    device = Device(prompt)
    reading = device.reading
    for step, value in history:
        match step:
            case "process":
                device.process(value)
            case "answer":
                device.answer.append(value)
            case "refine":
                kept, before, behind = data.draw(kept_indices(len(prompt))), list(device.memory), reading.processed
                left = reading.behind(device.answer)
                saved = reading.refine(kept)
                assert saved == left - reading.behind(device.answer) >= 0
                assert (device.memory, reading.processed) == (before, behind), "what was processed stays"
            case "reread":
                device.drop(reading.reread(data.draw(kept_indices(len(prompt)))))
            case "restore":
                device.drop(reading.restore())
                assert reading.ids == prompt
                assert not reading.refined
        whole = [*reading.ids, *device.answer]
        assert device.memory == whole[: reading.processed]
        assert reading.behind(device.answer) == len(whole) - len(device.memory)
        assert reading.ids[-1] == prompt[-1], "the token that the answer follows is always read"
        assert len(reading.ids) <= len(prompt)
        assert reading.refined == (len(reading.ids) < len(prompt))
        assert 0 <= reading.prompt_position <= len(prompt)
    device.process(len(prompt) + len(device.answer) + 1)
    assert device.memory == [*reading.ids, *device.answer], "no token is lost, repeated or out of order"


@given(st.data(), st.integers(1, 24), st.integers(0, 30))
def test_a_refined_prompt_is_what_was_read_and_the_kept_tokens_behind_it(data, length, read):
    prompt = list(range(length))
    device, kept = Device(prompt), data.draw(kept_indices(length))
    device.process(read)
    read = min(read, length)
    saved = device.reading.refine(kept)
    expected = [*range(read), *(index for index in kept if index >= read)]
    assert device.reading.ids == expected, "positions are consecutive: ids are all there is"
    assert saved == length - len(expected)


def test_a_prompt_that_has_been_read_is_not_refined():
    device = Device([1, 2, 3, 4])
    device.answer = [9]
    device.process(4)
    assert device.reading.refine([3]) == 0
    assert device.reading.ids == [1, 2, 3, 4]


def test_what_has_to_go_is_dropped_from_the_first_difference_on():
    device = Device(range(10))
    device.process(6)
    assert device.reading.reread([0, 1, 4, 9]) == 2
    device.drop(2)
    device.process(99)
    assert device.memory == [0, 1, 4, 9]


@given(st.data(), st.lists(st.integers(0, 3), min_size=2, max_size=12), st.lists(st.integers(0, 3), max_size=6))
def test_a_turn_behind_a_refined_one_goes_on_from_there(data, prompt, said):
    kept = data.draw(kept_indices(len(prompt)))
    first = Device(prompt)
    first.reading.refine(kept)
    first.answer = said
    first.process(99)
    history = RefinedHistory(tuple(first.reading.ids), tuple(prompt))
    assert history.whole(first.memory) == [*prompt, *said]

    following = [*prompt, *said[: data.draw(st.integers(0, len(said)))], *data.draw(st.lists(st.integers(0, 3)))]
    second = Device(following, first.memory, history)
    assert second.memory == first.memory[: second.head]
    if second.reading.refined:
        assert second.reading.prompt_position >= len(prompt) - 1
        assert second.reading.ids == [*second.memory, *following[second.reading.prompt_position :]]
    position, more = second.reading.prompt_position, data.draw(kept_indices(len(following)))
    head, rest = list(second.reading.ids), [following[index] for index in more if index >= position]
    saved = second.reading.refine(more)
    assert second.reading.ids == ([*second.memory, *rest] if saved else head)
    second.answer = [7]
    second.process(99)
    assert second.memory == [*second.reading.ids, 7]
    second.drop(second.reading.restore())
    second.process(99)
    assert second.memory == [*following, 7]


def held(prompt, ids, history):
    found = held_of(prompt, ids, history)
    return found.length, found.covered, None if found.history is None else list(found.history.ids)


HISTORY = RefinedHistory((0, 3, 5), (0, 1, 2, 3, 4, 5))
MEMORY = [0, 3, 5, 10, 11]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([0, 1, 2, 3, 4, 5, 10, 11, 20], (5, 8, [0, 3, 5])),
        ([0, 1, 2, 3, 4, 5, 10, 11], (4, 7, [0, 3, 5])),
        ([0, 1, 2, 3, 4, 5, 10, 77], (4, 7, [0, 3, 5])),
        ([0, 1, 2, 3, 4, 5, 77], (3, 6, [0, 3, 5])),
        ([0, 1, 2, 3, 4, 5], (2, 5, [0, 3])),
        ([0, 1, 2, 3, 4, 6, 10], (1, 1, None)),
        ([0, 3, 5, 10, 99], (4, 4, None)),
        ([7], (0, 0, None)),
    ],
    ids=[
        "the next turn",
        "the same, less its last token",
        "a changed answer",
        "another question",
        "the same prompt again",
        "another prompt",
        "the refined prompt itself",
        "nothing",
    ],
)
def test_what_is_held_of_a_prompt(prompt, expected):
    assert held(prompt, MEMORY, HISTORY) == expected


def test_a_common_prefix_of_nothing_is_nothing():
    assert common_prefix([], [1]) == common_prefix([1], []) == 0


@given(st.integers(2, 60), st.data())
def test_the_clouds_cells_take_the_place_of_what_is_not_read(length, data):
    """Whatever the batches and pieces: each position is read or taken, and nothing is read beyond the cells."""
    prompt, answer = list(range(length)), [100, 101]
    reading, read, back = Reading(prompt), [], length - 1
    while reading.joined is None and reading.processed < length - 1:
        if data.draw(st.booleans()) and back > reading.processed:
            back = reading.back = data.draw(st.integers(reading.processed, back - 1))
        if reading.back == reading.processed:
            break
        batch = reading.pending(answer, data.draw(st.integers(1, 20)))
        assert batch
        read += batch
        reading.processed += len(batch)
        assert reading.back is None or reading.processed <= reading.back
    if reading.back is None:
        assert not reading.by_cloud
        return
    assert reading.by_cloud
    assert reading.behind(answer) == 3
    front = reading.processed
    assert read == prompt[:front]
    assert reading.join() == length - 1 - front
    assert reading.pending(answer, 9) == [length - 1, *answer]
    assert reading.behind(answer) == reading.readable(2) == 3
    reading.processed += 2
    assert reading.without_cells() == front
    assert not reading.by_cloud
    assert reading.pending([], length) == prompt[front:]
