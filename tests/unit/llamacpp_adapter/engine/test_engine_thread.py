"""Jobs on the engine's thread: whoever is cancelled stops, and nobody else does."""

from __future__ import annotations

import asyncio
import threading

import anyio
import pytest

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.engine.abort_flag import DecodeAborted
from pdd_llamacpp_adapter.engine.engine_thread import EngineThread

pytestmark = pytest.mark.anyio


@pytest.fixture
def thread():
    made = EngineThread()
    yield made
    made.shut_down()


def computing(thread, begun):
    """Work as llama.cpp does it: until it is done in an hour, or told to stop."""

    def work():
        begun.set()
        for _ in range(3_600_000):
            if thread.abort.raised:
                raise DecodeAborted
            threading.Event().wait(0.001)

    return work


async def test_a_cancelled_job_sees_the_flag_and_the_next_one_does_not(thread):
    begun = threading.Event()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(thread.call, computing(thread, begun))
        await anyio.to_thread.run_sync(begun.wait)
        tasks.cancel_scope.cancel()
    assert not thread.abort.raised, "it is over"
    assert await thread.call(lambda: thread.abort.raised) is False


async def test_a_job_cancelled_in_the_queue_stops_nobody_else(thread):
    begun, goes_on = threading.Event(), threading.Event()

    def first():
        begun.set()
        goes_on.wait()
        return thread.abort.raised

    found, ran = [], []
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(noted, found, thread.call, first)
        await anyio.to_thread.run_sync(begun.wait)
        second = asyncio.create_task(thread.call(lambda: ran.append("though it was cancelled before its turn")))
        await asyncio.sleep(0)  # it is in line
        second.cancel()
        for _ in range(5):
            await asyncio.sleep(0)  # it knows
        goes_on.set()
        with pytest.raises(asyncio.CancelledError):
            await second
    assert (found, ran) == ([False], [])


async def noted(found, call, *args):
    found.append(await call(*args))


async def test_stopping_the_thread_stops_what_it_does():
    thread, begun, failed = EngineThread(), threading.Event(), []

    async def cut_off():
        try:
            await thread.call(computing(thread, begun))
        except DeviceEngineFailed as error:
            failed.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cut_off)
        await anyio.to_thread.run_sync(begun.wait)
        await anyio.to_thread.run_sync(thread.stop, lambda: None)
    assert failed == ["the engine was closed while it was answering"]
