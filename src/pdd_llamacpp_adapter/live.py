"""An answer in time: the state, a clock, and a bell that rings when the state has changed."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import anyio

from pdd_core.timeline import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_llamacpp_adapter.answer import Answer


class LiveAnswer:
    """What the parts of a session share. One event loop, so no lock: between two awaits nothing changes."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.received_at: list[float] = []
        """Per token of the answer: seconds since the request began."""
        self.caught_up_at: float | None = None
        self.took_over_at: float | None = None
        self._begun = time.monotonic()
        self._bell = anyio.Event()

    def now(self) -> float:
        """Seconds since the request began."""
        return time.monotonic() - self._begun

    def changed(self) -> None:
        """Note the time of what is new, and wake everyone who waits."""
        now = self.now()
        self.received_at.extend([now] * (len(self.answer) - len(self.received_at)))
        if self.caught_up_at is None and self.answer.caught_up:
            self.caught_up_at = now
        if self.took_over_at is None and self.answer.owner is Source.DEVICE:
            self.took_over_at = now
        bell, self._bell = self._bell, anyio.Event()
        bell.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Return once `condition` holds. It is looked at after every change."""
        while not condition():
            await self._bell.wait()
