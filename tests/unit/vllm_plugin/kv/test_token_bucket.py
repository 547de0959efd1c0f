import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_vllm_plugin.kv.token_bucket import BURST_S, TokenBucket, bucket

pytestmark = pytest.mark.anyio


class World:
    """A clock that moves when somebody sleeps, by too much at times."""

    def __init__(self, late=0.0):
        self.now, self.late, self.naps = 100.0, late, 0

    async def sleep(self, seconds):
        self.now += seconds + self.late
        self.naps += 1

    def bucket(self, rate):
        return TokenBucket(rate, lambda: self.now, self.sleep)


async def test_bytes_take_the_time_that_the_rate_says():
    world = World()
    limited = world.bucket(1000.0)
    for _ in range(10):
        await limited.take(500)
    assert world.now == pytest.approx(105.0)


async def test_waking_up_late_is_made_up_for_within_bounds():
    world = World(late=BURST_S / 2)
    limited = world.bucket(1000.0)
    for _ in range(100):
        await limited.take(100)
    assert world.now == pytest.approx(110.0, abs=2 * BURST_S)


async def test_idle_time_is_not_saved_up():
    world = World()
    limited = world.bucket(1000.0)
    world.now += 1000.0
    for _ in range(10):
        await limited.take(1000)
    assert world.now >= 1110.0 - BURST_S


@given(st.lists(st.tuples(st.integers(1, 100_000), st.floats(0, 3)), min_size=1, max_size=30))
def test_never_more_than_the_rate_and_one_burst_passes(takes):
    async def run():
        world = World()
        limited, begun, passed = world.bucket(10_000.0), world.now, 0
        for count, idle in takes:
            world.now += idle
            await limited.take(count)
            passed += count
            assert passed <= 10_000.0 * (world.now - begun + BURST_S) + 1e-3

    asyncio.run(run())


async def test_several_share_one_bucket():
    """Who comes while another one waits waits behind it."""
    world = World()
    limited = world.bucket(1000.0)
    waits = []

    async def note(seconds):
        waits.append(seconds)

    limited._sleep = note
    for _ in range(3):
        await limited.take(1000)
    assert waits == pytest.approx([1.0, 2.0, 3.0])


def test_a_rate_is_in_mbit_and_shared_by_the_processes():
    assert bucket(None) is None
    assert bucket(8.0)._rate == 1_000_000
    assert bucket(8.0, 4)._rate == 250_000
