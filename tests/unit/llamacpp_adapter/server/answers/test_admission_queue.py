import anyio
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import DeviceBusy
from pdd_llamacpp_adapter.server.answers.admission_queue import AdmissionQueue


@given(
    max_running=st.integers(1, 3),
    max_queue=st.integers(0, 4),
    answers=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6), st.booleans()), max_size=12),
)
def test_never_more_run_or_wait_than_may_and_all_places_come_back(max_running, max_queue, answers):
    """Each answer comes after some steps, takes some, and may leave early."""
    queue = AdmissionQueue(max_running, max_queue)
    served, refused, left = [], [], []

    async def answer(number, begins, lasts, impatient):
        for _ in range(begins):
            await anyio.lowlevel.checkpoint()
        with anyio.CancelScope() as scope:
            if impatient:
                tasks.start_soon(leave, scope, lasts)
            try:
                async with queue.place():
                    assert queue.running <= max_running
                    for _ in range(lasts):
                        await anyio.lowlevel.checkpoint()
                    served.append(number)
                    return
            except DeviceBusy as error:
                refused.append((number, queue.running + queue.waiting, error.retry_after))
                return
        left.append(number)

    async def leave(scope, after):
        for _ in range(after):
            await anyio.lowlevel.checkpoint()
        assert queue.waiting <= max_running + max_queue
        scope.cancel()

    async def main():
        nonlocal tasks
        async with anyio.create_task_group() as tasks:
            for number, (begins, lasts, impatient) in enumerate(answers):
                tasks.start_soon(answer, number, begins, lasts, impatient)

    tasks = None
    anyio.run(main)
    assert (queue.running, queue.waiting) == (0, 0)
    assert all(held == max_running + max_queue and 0 < wait <= 60 for _, held, wait in refused)
    assert sorted([*served, *(number for number, _, _ in refused), *left]) == list(range(len(answers)))


@pytest.mark.anyio
async def test_who_comes_first_is_served_first():
    queue, order = AdmissionQueue(1, 5), []

    async def answer(number):
        async with queue.place():
            await anyio.lowlevel.checkpoint()
            order.append(number)

    async with anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(answer, number)
            await anyio.lowlevel.checkpoint()
    assert order == list(range(6))
