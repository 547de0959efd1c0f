"""The engine's word for a cancel, where a server has several engines."""

import asyncio
import time

import anyio
import pytest
from vllm_fakes import FakeCoreClient, FakeEngine

from pdd_core.optin import OptIn
from pdd_vllm_plugin.cancel import cancel, confirm
from pdd_vllm_plugin.handoff_record import HandoffRecord

pytestmark = pytest.mark.anyio
PAUSED = "is_scheduler_paused"


@pytest.fixture
def engines():
    client = FakeEngine()
    client.engine_core = FakeCoreClient()
    return client


def record(engine=None):
    return HandoffRecord(
        opt_in=OptIn("a" * 32), completion_id="cmpl-x", engine_request_id="x", model="m", tokenizer="t",
        sampling_params={}, created=time.time(), touched=0.0,
        budget_report=None if engine is None else {"engine": engine},
    )  # fmt: skip


async def test_only_the_engine_that_has_the_request_is_waited_for(engines):
    engines.engine_core.held[0] = anyio.Event()
    assert await cancel(engines, record(engine=1), timeout=30)
    assert engines.aborted == ["x"]
    assert engines.engine_core.asked == [(1, PAUSED)]
    assert not engines.paused_calls


async def test_a_request_whose_engine_is_not_known_is_confirmed_by_all(engines):
    engines.engine_core.held[1] = anyio.Event()
    waiting = asyncio.create_task(confirm(engines, timeout=30))
    while len(engines.engine_core.asked) < 2:
        await asyncio.sleep(0)
    assert not waiting.done()
    engines.engine_core.held[1].set()
    assert await waiting
    assert engines.engine_core.asked == [(0, PAUSED), (1, PAUSED)]


async def test_an_engine_that_says_nothing_in_time_has_confirmed_nothing(engines):
    engines.engine_core.held[1] = anyio.Event()
    assert not await confirm(engines, timeout=0.01, rank=1)


@pytest.mark.parametrize("rank", [None, 1])
async def test_where_no_engine_can_be_asked_alone_vllm_asks_all(rank):
    client = FakeEngine()
    assert await confirm(client, timeout=30, rank=rank)
    assert client.paused_calls == 1
