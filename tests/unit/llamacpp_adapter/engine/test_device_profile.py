from __future__ import annotations

import pytest

from pdd_core.errors import ConfigurationError
from pdd_llamacpp_adapter.engine.device_profile import PROFILES, DeviceProfile, Throttle

pytestmark = pytest.mark.anyio


class Clock:
    """Time that passes only when slept; `early` wakes a sleeper that much too soon."""

    def __init__(self, early=0.0):
        self.now, self.early, self.sleeps = 0.0, early, []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        self.sleeps.append(seconds)
        self.now += max(seconds - self.early, 1e-6)
        self.early = 0.0


async def test_a_chunk_takes_as_long_as_on_the_profiled_device():
    clock = Clock()
    throttle = Throttle(DeviceProfile("slow", 100.0, 20.0), clock, clock.sleep)
    clock.now = 0.1  # the machine needed 0.1 s for what takes the device 0.5 s
    await throttle.wait(50, 0.0)
    assert clock.now == pytest.approx(0.5)


async def test_a_single_token_takes_a_decode_step():
    clock = Clock()
    await Throttle(DeviceProfile("slow", 100.0, 20.0), clock, clock.sleep).wait(1, 0.0)
    assert clock.now == pytest.approx(0.05)


async def test_a_slow_machine_does_not_wait():
    clock = Clock()
    clock.now = 3.0
    await Throttle(DeviceProfile("slow", 100.0, 20.0), clock, clock.sleep).wait(50, 0.0)
    assert clock.sleeps == []


async def test_a_timer_that_fires_early_does_not_beat_the_profile():
    clock = Clock(early=0.01)
    await Throttle(DeviceProfile("slow", 100.0, 20.0), clock, clock.sleep).wait(50, 0.0)
    assert clock.now >= 0.5
    assert len(clock.sleeps) == 2


async def test_without_a_profile_nothing_waits():
    clock = Clock()
    await Throttle(None, clock, clock.sleep).wait(500, 0.0)
    assert clock.sleeps == []


@pytest.mark.parametrize(("prefill", "chunk"), [(10.0, 16), (120.0, 30), (5000.0, 128)])
async def test_chunks_are_a_quarter_second_within_bounds(prefill, chunk):
    assert DeviceProfile("any", prefill, 10.0).chunk == chunk


async def test_a_profile_without_speed_is_refused():
    with pytest.raises(ConfigurationError, match="prefill_tps"):
        DeviceProfile("dead", 0.0, 10.0)


async def test_named_profiles():
    assert PROFILES["none"] is None
    phone = PROFILES["phone"]
    assert phone is not None
    assert (phone.prefill_tps, phone.decode_tps) == (80.0, 20.0)
