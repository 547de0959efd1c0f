"""Device profiles: what a slower device would do with the same answer.

A profile only ever waits: the tokens are computed here and now, and shown no sooner than the profiled device would
have had them. A machine slower than its profile stays as slow as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

DEFAULT_CHUNK = 64
"""Least prompt tokens per llama_decode without a profile: as fast as 512 on a CPU, and 8 times as interruptible.
Smaller chunks read the weights too often: of 32 tokens, they take a fifth longer there."""
_SECONDS_PER_CHUNK = 0.25
"""Small enough that the waits look even, large enough that the chunk's own overhead does not count."""


@dataclass(frozen=True, slots=True)
class DeviceProfile:
    """Upper bounds on a device's speed.

    Raises:
        ConfigurationError: a rate is not positive.
    """

    name: str
    prefill_tps: float
    """Prompt tokens per second."""
    decode_tps: float
    """Answer tokens per second."""

    def __post_init__(self) -> None:
        if not (self.prefill_tps > 0 and self.decode_tps > 0):
            raise ConfigurationError(f"device profile {self.name!r}: prefill_tps and decode_tps must be positive")

    def seconds(self, tokens: int) -> float:
        """Return the shortest time for a batch of `tokens`.

        A batch, however small, reads all weights once: it costs no less than one decode step.
        """
        return max(tokens / self.prefill_tps, 1.0 / self.decode_tps)

    @property
    def chunk(self) -> int:
        """Tokens per prefill chunk, 16 to 128."""
        return int(min(128, max(16, self.prefill_tps * _SECONDS_PER_CHUNK)))


PROFILES: Mapping[str, DeviceProfile | None] = MappingProxyType(
    {"phone": DeviceProfile("phone", 80.0, 20.0), "none": None}
)
"""Profiles by name; ``none`` is the machine as it is."""


@dataclass(frozen=True, slots=True)
class Throttle:
    """Holds batches to a profile. Waits on the event loop, so the engine's thread stays free."""

    profile: DeviceProfile | None
    clock: Callable[[], float]
    """Seconds."""
    sleep: Callable[[float], Awaitable[None]] = anyio.sleep

    @property
    def chunk(self) -> int | None:
        """Tokens per prefill chunk; None leaves it to the engine's own speed."""
        return None if self.profile is None else self.profile.chunk

    async def wait(self, tokens: int, begun: float) -> None:
        """Return when the profiled device would have processed `tokens` since `begun`, at once if that is past."""
        if self.profile is None:
            return
        # a timer may fire a hair early, and a profile must never be beaten
        while (left := begun + self.profile.seconds(tokens) - self.clock()) > 0:
            await self.sleep(left)
