"""Idle work on a fake engine: who gets it when, and what its memory is afterwards."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import anyio
import pytest

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.engine.engine_queue import EngineQueue
from pdd_llamacpp_adapter.engine.history import RefinedHistory
from pdd_llamacpp_adapter.engine.upgrade import upgrade, upgrade_when_idle

pytestmark = pytest.mark.anyio

HISTORY = RefinedHistory((0, 1, 5, 9), tuple(range(10)))
REFINED = [0, 1, 5, 9, 70, 71]
WHOLE = [*range(10), 70, 71]


class Free:
    """A slot that nobody looks into."""


class MemoryEngine:
    """A memory without a model; `gate` has to be set for every batch but the first `free`."""

    def __init__(self, *, n_ctx=100, free=99, fails=False, save=True):
        self.memory = self
        self.queue = EngineQueue([self])
        self.n_ctx = n_ctx
        self.held, self.history = list(REFINED), HISTORY
        self.batches = []
        self.stands_for = None
        self.entered, self.gate = anyio.Event(), anyio.Event()
        self._free, self._fails, self._save = free, fails, save

    def whole(self):
        return list(self.held) if self.history is None else self.history.whole(self.held)

    async def save(self):
        await anyio.lowlevel.checkpoint()
        return SimpleNamespace(ids=tuple(self.held), history=self.history) if self._save else None

    async def load(self, saved):
        await anyio.lowlevel.checkpoint()
        self.held, self.history = list(saved.ids), saved.history

    @contextmanager
    def telling_of(self, saved):
        self.stands_for = saved
        try:
            yield
        finally:
            self.stands_for = None

    async def rewind(self, length):
        await anyio.lowlevel.checkpoint()
        del self.held[length:]
        self.history = None
        return length

    async def extend(self, ids):
        if len(self.batches) >= self._free:
            self.entered.set()
            await self.gate.wait()
        if self._fails:
            raise DeviceEngineFailed("llama_decode returned -3")
        await anyio.lowlevel.checkpoint()
        self.batches.append(list(ids))
        self.held += ids


def four():
    return 4


async def test_the_whole_prompt_takes_the_refined_ones_place():
    engine = MemoryEngine()
    assert await upgrade(engine, engine.n_ctx, four)
    assert (engine.held, engine.history) == (WHOLE, None)
    assert engine.batches == [[2, 3, 4, 5], [6, 7, 8, 9], [70, 71]], "what both begin with is kept"
    assert not await upgrade(engine, engine.n_ctx, four), "there is nothing more to do"


@pytest.mark.parametrize("options", [{"n_ctx": 11}, {"save": False}], ids=["no room", "too large to put aside"])
async def test_nothing_is_done_where_it_could_do_harm(options):
    engine = MemoryEngine(**options)
    assert not await upgrade(engine, engine.n_ctx, four)
    assert (engine.held, engine.history, engine.batches) == (REFINED, HISTORY, [])


async def test_a_failure_leaves_the_memory_as_it_was():
    engine = MemoryEngine(fails=True)
    with pytest.raises(DeviceEngineFailed):
        await upgrade(engine, engine.n_ctx, four)
    assert (engine.held, engine.history) == (REFINED, HISTORY)


async def test_idle_work_begins_after_an_answer_and_makes_way_for_the_next():
    engine = MemoryEngine(free=1)
    seen = []
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upgrade_when_idle, engine, four)
            await anyio.wait_all_tasks_blocked()
            assert engine.batches == [], "nobody has answered yet"
            async with engine.queue.answer():
                await anyio.wait_all_tasks_blocked()
                assert engine.batches == []
            await engine.entered.wait()
            assert len(engine.held) < len(WHOLE)
            assert engine.stands_for.history == HISTORY, "an answer that comes now will find it"
            async with engine.queue.answer():
                assert engine.stands_for is None
                seen.append((list(engine.held), engine.history))
                engine.gate.set()
            await anyio.wait_all_tasks_blocked()
            tasks.cancel_scope.cancel()
    assert seen == [(REFINED, HISTORY)], "the answer finds the memory as it was"
    assert (engine.held, engine.history) == (WHOLE, None), "and afterwards there is time again"


@pytest.mark.parametrize("apart", range(6))
async def test_idle_work_outlives_answers_that_come_at_any_moment(apart):
    engine = MemoryEngine()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upgrade_when_idle, engine, four)
        await anyio.wait_all_tasks_blocked()
        for _ in range(10):
            async with engine.queue.answer():
                engine.held, engine.history = list(REFINED), HISTORY
            for _ in range(apart):
                await anyio.lowlevel.checkpoint()
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert (engine.held, engine.history) == (WHOLE, None)


async def test_idle_work_that_fails_is_told_of_and_tried_again(caplog):
    engine = MemoryEngine(fails=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(upgrade_when_idle, engine, four)
        for _ in range(2):
            await anyio.wait_all_tasks_blocked()
            async with engine.queue.answer():
                pass
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]
    assert engine.held == REFINED


async def test_nor_does_what_should_not_happen_take_the_server_down(caplog):
    """Out of memory, say: a server without idle work is as good as before."""
    engine = MemoryEngine()

    async def save():
        raise MemoryError("no room for a copy of the memory")

    engine.save = save
    async with anyio.create_task_group() as server:
        server.start_soon(upgrade_when_idle, engine, four)
        for _ in range(2):
            await anyio.wait_all_tasks_blocked()
            async with engine.queue.answer():
                pass
        await anyio.wait_all_tasks_blocked()
        server.cancel_scope.cancel()
    assert [(record.levelname, record.exc_info[0]) for record in caplog.records] == [("ERROR", MemoryError)] * 2
    assert (engine.held, engine.history) == (REFINED, HISTORY)


async def test_a_server_that_ends_does_not_wait_for_idle_work():
    engine = MemoryEngine(free=1)
    with anyio.fail_after(60):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(upgrade_when_idle, engine, four)
            await anyio.wait_all_tasks_blocked()
            async with engine.queue.answer():
                pass
            await engine.entered.wait()
            tasks.cancel_scope.cancel()
    assert engine.held == REFINED


async def test_answers_take_turns_in_the_order_in_which_they_came():
    queue, order = EngineQueue([Free()]), []

    async def answer(name):
        async with queue.answer():
            order.append(name)
            await anyio.lowlevel.checkpoint()
            order.append(name)

    async with anyio.create_task_group() as tasks:
        for name in range(4):
            tasks.start_soon(answer, name)
    assert order == [0, 0, 1, 1, 2, 2, 3, 3]


async def test_idle_work_does_not_begin_while_an_answer_wants_the_engine():
    queue, worked = EngineQueue([Free()]), []

    async def work(name):
        async def work(_):
            await anyio.lowlevel.checkpoint()
            worked.append(name)

        await queue.when_idle(work)

    async with anyio.create_task_group() as tasks:
        async with queue.answer():
            tasks.start_soon(work, "while there is an answer")
            await anyio.wait_all_tasks_blocked()
        tasks.start_soon(work, "afterwards")
    assert worked == ["afterwards"]


async def test_the_engine_is_idle_once_the_last_answer_has_let_go():
    queue, idle = EngineQueue([Free()]), anyio.Event()

    async def wait():
        await queue.answered()
        idle.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(wait)
        await anyio.wait_all_tasks_blocked()
        async with queue.answer():
            async with anyio.create_task_group() as others:
                others.start_soon(hold, queue)
                await anyio.wait_all_tasks_blocked()
                others.cancel_scope.cancel()
            assert not idle.is_set()
        await idle.wait()


async def hold(queue):
    async with queue.answer():
        raise AssertionError("the engine was taken already")
