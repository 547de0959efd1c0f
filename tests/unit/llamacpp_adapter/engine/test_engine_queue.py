"""Which slot an answer gets, and who waits."""

from __future__ import annotations

import anyio
import pytest

from pdd_llamacpp_adapter.engine.engine_queue import EngineQueue
from pdd_llamacpp_adapter.engine.history import common_prefix

pytestmark = pytest.mark.anyio


class Slot:
    """A slot that holds `ids`."""

    def __init__(self, ids=()):
        self.ids, self.memory = list(ids), self

    def holds(self, prompt):
        return common_prefix(self.ids, prompt)


async def test_an_answer_gets_the_slot_that_has_most_of_its_prompt():
    slots = [Slot(range(5)), Slot(range(50)), Slot()]
    queue = EngineQueue(slots)
    async with queue.answer(range(60)) as slot:
        assert slot is slots[1]
        assert len(queue._free) == 2
        async with queue.answer(range(60)) as other:
            assert other is slots[0], "the best of those that are left: with 5 of 60, that is not the best's text"


async def test_or_the_one_that_was_used_longest_ago():
    slots = [Slot([1] * 50), Slot([2] * 50), Slot([3] * 50)]
    queue = EngineQueue(slots)
    async with queue.answer([1] * 60) as slot:
        assert slot is slots[0]
    for expected in (1, 2, 0, 1):
        async with queue.answer([9] * 60) as slot:
            assert slot is slots[expected]


async def test_a_common_beginning_is_not_worth_another_chats_text():
    slots = [Slot([0, 1, *range(100, 200)]), Slot()]
    queue = EngineQueue(slots)
    async with queue.answer([0]):
        pass
    async with queue.answer([0, 1, *range(300, 400)]) as slot:
        assert slot is slots[1]


async def test_more_answers_than_slots_wait_in_line():
    queue, order = EngineQueue([Slot(), Slot()]), []
    leave = [anyio.Event() for _ in range(4)]

    async def answer(number):
        async with queue.answer():
            order.append(number)
            await leave[number].wait()

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(answer, number)
            await anyio.wait_all_tasks_blocked()
        assert (order, queue._free) == ([0, 1], [])
        leave[1].set()
        await anyio.wait_all_tasks_blocked()
        assert order == [0, 1, 2]
        for event in leave:
            event.set()
    assert (order, len(queue._free)) == ([0, 1, 2, 3], 2)


async def test_idle_work_has_every_slot_and_an_answer_waits_until_it_is_undone():
    slots, order = [Slot(), Slot()], []
    queue, begun = EngineQueue(slots), anyio.Event()

    async def work(slot):
        order.append(slots.index(slot))
        if slot is slots[1]:
            begun.set()
            try:
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.lowlevel.checkpoint()
                    order.append("undone")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(queue.when_idle, work)
        await begun.wait()
        async with queue.answer():
            order.append("answer")
    assert order == [0, 1, "undone", "answer"]
