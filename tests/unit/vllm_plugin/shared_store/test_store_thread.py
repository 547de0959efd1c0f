import asyncio
import threading

import pytest

from pdd_vllm_plugin.shared_store.store_thread import StoreThread

pytestmark = pytest.mark.anyio


async def forever():
    await asyncio.Event().wait()


async def test_work_is_done_in_the_thread_and_its_result_comes_back():
    thread = StoreThread(forever)

    async def where():
        return threading.current_thread().name

    assert await thread.result(where()) == "pdd-store"
    called = threading.Event()
    thread.call(called.set)
    assert await asyncio.to_thread(called.wait, 30)
    thread.stop()


async def test_once_stopped_it_does_nothing_and_ends():
    thread = StoreThread(forever)
    thread.stop()
    assert not thread._thread.is_alive()
    thread.call(pytest.fail, "called")
    with pytest.raises(RuntimeError):
        await thread.result(forever())


async def test_it_can_be_stopped_before_it_has_begun_and_is_a_daemon():
    began = threading.Event()

    async def main():
        began.set()
        await forever()

    threads = [StoreThread(main) for _ in range(20)]
    for thread in threads:
        thread.stop()
    assert not any(thread._thread.is_alive() for thread in threads)
    assert all(thread._thread.daemon for thread in threads)
