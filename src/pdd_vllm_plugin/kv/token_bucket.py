"""A bound on bytes per second. Nobody polls: who has to wait knows for how long."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BURST_S = 0.1
"""Unused time that may be made up for. It covers what the event loop wakes up late."""


class TokenBucket:
    """Lets `rate` bytes per second pass, in the order in which they are asked for."""

    def __init__(
        self,
        rate: float,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = anyio.sleep,
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._free_at = clock()
        """When all that was let pass has passed."""

    async def take(self, count: int) -> None:
        """Return when `count` bytes may go. Who is cancelled meanwhile has used them up."""
        now = self._clock()
        self._free_at = max(self._free_at, now - BURST_S) + count / self._rate
        if self._free_at > now:
            await self._sleep(self._free_at - now)


def bucket(mbit_s: float | None, share: int = 1) -> TokenBucket | None:
    """Return a bucket of a `share`-th of `mbit_s`, in Mbit/s; None where there is no bound."""
    return None if mbit_s is None else TokenBucket(mbit_s * 1e6 / 8 / share)
