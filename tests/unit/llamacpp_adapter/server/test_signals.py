import signal

import anyio
import pytest

from pdd_llamacpp_adapter.server.signals import by_handlers, received_signals

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("opened", [by_handlers, received_signals])
async def test_signals_come_in_order(opened):
    with anyio.fail_after(60), opened(signal.SIGINT, signal.SIGTERM) as received:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.raise_signal(number)
            assert await anext(received) == number


async def test_handlers_are_those_of_before_once_the_block_has_ended():
    before = signal.getsignal(signal.SIGTERM)
    with by_handlers(signal.SIGTERM):
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


async def test_signals_that_nobody_reads_are_not_kept():
    with by_handlers(signal.SIGTERM):
        for _ in range(100):
            signal.raise_signal(signal.SIGTERM)
        await anyio.lowlevel.checkpoint()
