"""What several answers want processed, in batches of a context without a model."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.engine.abort_flag import DecodeAborted
from pdd_llamacpp_adapter.engine.batcher import Batcher
from pdd_llamacpp_adapter.engine.engine_thread import EngineThread
from pdd_llamacpp_adapter.engine.sharing import Sharing

LONG = 60
"""Seconds, after which a test has failed."""


class Context:
    """Notes its batches. `gate` has to be open; a batch with an id of `fails` in it fails."""

    n_batch = 64
    most_outputs = 8

    def __init__(self, fails=(), abort=None):
        self.batches, self.fails, self.abort = [], set(fails), abort
        self.entered, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def decode(self, parts):
        assert 1 <= sum(len(part.ids) for part in parts) <= self.n_batch
        assert sum(len(part.outputs) for part in parts) <= self.most_outputs
        assert len({part.sequence for part in parts}) == len(parts)
        self.entered.set()
        while not self.gate.wait(0.01):
            if self.abort.raised:
                raise DecodeAborted
        if self.fails & {token for part in parts for token in part.ids}:
            raise DeviceEngineFailed("llama_decode returned -3")
        self.batches.append([tuple(part.ids) for part in parts])


@dataclass(eq=False)
class Task:
    """The parts of one answer, of these sizes. All of its ids are `name`."""

    name: int
    sizes: list
    outputs: int = 1
    seconds: list = field(default_factory=list)
    cancelled: bool = False
    broken: bool = False

    def __post_init__(self):
        self.future, self.left = Future(), list(self.sizes)
        self._next()

    def _next(self):
        size = self.left.pop(0)
        self.part = SimpleNamespace(sequence=self.name, ids=[self.name] * size, outputs=range(self.outputs))

    def processed(self, ran):
        self.seconds.append(ran.alone_s)
        if self.broken:
            raise ValueError("a mistake of ours")
        if self.left:
            self._next()
            return True
        return False


@pytest.fixture
def thread():
    made = EngineThread()
    yield made
    made.shut_down()


def batcher(context, thread, slots=4):
    return Batcher(context, thread, Sharing(slots, together=2.0))


def done_together(made, context, tasks):
    """Have `tasks` processed; all of them are there before the first of their batches."""
    context.gate.clear()
    made.add(first := Task(9, [1]))
    context.entered.wait(LONG)
    for task in tasks:
        made.add(task)
    context.gate.set()
    wait([task.future for task in [first, *tasks]], timeout=LONG)


def processed(context, name):
    return [len(ids) for batch in context.batches for ids in batch if ids[0] == name]


@given(answers=st.lists(st.lists(st.integers(1, 64), min_size=1, max_size=6), min_size=1, max_size=6))
def test_every_part_is_processed_once_and_in_order_whatever_there_is_besides(answers):
    thread = EngineThread()
    context = Context()
    tasks = [Task(name, sizes) for name, sizes in enumerate(answers)]
    made = batcher(context, thread)
    for task in tasks:
        made.add(task)
    done = wait([task.future for task in tasks], timeout=LONG)
    thread.shut_down()
    assert not done.not_done
    for task in tasks:
        assert processed(context, task.name) == task.sizes
        assert len(task.seconds) == len(task.sizes)
    assert all(sum(len(ids) >= 16 for ids in batch) <= 1 for batch in context.batches)


def test_answers_share_batches_and_one_that_comes_later_joins_in(thread):
    context = Context()
    made, one, two = batcher(context, thread), Task(1, [1] * 3), Task(2, [1] * 3)
    context.gate.clear()
    made.add(one)
    context.entered.wait(LONG)
    made.add(two)
    context.gate.set()
    wait([one.future, two.future], timeout=LONG)
    assert context.batches == [[(1,)], [(2,), (1,)], [(2,), (1,)], [(2,)]]
    assert None not in one.seconds + two.seconds


def test_prompts_are_read_in_turns_and_nothing_is_learnt_of_steps_beside_them(thread):
    context = Context()
    made, tasks = batcher(context, thread), [Task(1, [20, 20]), Task(2, [20, 20]), Task(3, [1] * 4)]
    done_together(made, context, tasks)
    large = [[ids[0] for ids in batch if len(ids) == 20] for batch in context.batches[1:]]
    assert large == [[1], [2], [1], [2]]
    assert tasks[2].seconds == [None] * 4
    assert None not in tasks[0].seconds


def test_one_that_is_to_blame_fails_and_the_others_go_on(thread):
    context = Context(fails={2})
    made, tasks = batcher(context, thread), [Task(1, [1, 1]), Task(2, [1, 1]), Task(3, [1, 1])]
    done_together(made, context, tasks)
    assert isinstance(tasks[1].future.exception(), DeviceEngineFailed)
    assert [task.future.exception() for task in (tasks[0], tasks[2])] == [None, None]
    assert processed(context, 1) == processed(context, 3) == [1, 1]


def test_a_mistake_with_the_logits_is_its_own_tasks_alone(thread):
    context = Context()
    made, wrong, right = batcher(context, thread), Task(1, [1, 1], broken=True), Task(2, [1, 1])
    made.add(wrong)
    made.add(right)
    wait([wrong.future, right.future], timeout=LONG)
    assert isinstance(wrong.future.exception(), ValueError)
    assert right.future.exception() is None


def test_one_that_is_cancelled_stops_llama_cpp_only_where_it_is_alone(thread):
    context = Context(abort=thread.abort)
    made, alone = batcher(context, thread), Task(1, [30, 30])
    context.gate.clear()
    made.add(alone)
    context.entered.wait(LONG)
    made.cancel(alone)
    assert isinstance(alone.future.exception(LONG), DecodeAborted)
    assert context.batches == []

    context.entered.clear()
    made.add(first := Task(9, [1]))
    context.entered.wait(LONG)
    one, two = Task(1, [30, 30]), Task(2, [1, 1])
    made.add(one)
    made.add(two)
    context.entered.clear()
    context.gate.set()
    first.future.result(LONG)
    made.cancel(one)
    two.future.result(LONG)
    wait([one.future], timeout=LONG)
    assert one.future.done()
    assert processed(context, 2) == [1, 1]
    assert sum(processed(context, 1)) <= 60


def test_what_waits_fails_when_the_engine_is_closed(thread):
    context = Context(abort=thread.abort)
    made, tasks = batcher(context, thread), [Task(1, [30]), Task(2, [30])]
    context.gate.clear()
    for task in tasks:
        made.add(task)
    context.entered.wait(LONG)
    made.close()
    wait([task.future for task in tasks], timeout=LONG)
    assert all(isinstance(task.future.exception(), (DecodeAborted, DeviceEngineFailed)) for task in tasks)
    with pytest.raises(DeviceEngineFailed, match="closed"):
        made.add(Task(3, [1]))
