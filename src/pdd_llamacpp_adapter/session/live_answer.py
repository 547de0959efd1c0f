"""An answer in time: the state, a clock, and a bell that rings when the state has changed."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from pdd_core.timeline import Source

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_llamacpp_adapter.session.answer import Answer


@dataclass(frozen=True, slots=True)
class Decision:
    """Something that was decided about an answer, for the log."""

    at: float
    """Seconds since the request began."""
    what: str
    """No text of prompt or answer."""


class LiveAnswer:
    """What the parts of a session share. One event loop, so no lock: between two awaits nothing changes."""

    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.received_at: list[float] = []
        """Per token of the answer: seconds since the request began."""
        self.shown = 0
        """Tokens that the user has seen."""
        self.caught_up_at: float | None = None
        self.took_over_at: float | None = None
        self.decisions: list[Decision] = []
        self._begun = time.monotonic()
        self._bell = anyio.Event()

    def now(self) -> float:
        """Seconds since the request began."""
        return time.monotonic() - self._begun

    @property
    def buffered(self) -> int:
        """Tokens at hand that the user has not seen."""
        return len(self.answer) - self.shown

    @property
    def silence(self) -> float:
        """Seconds since the latest token came, or since the request began."""
        return self.now() - (self.received_at[-1] if self.received_at else 0.0)

    @property
    def arrival_rate(self) -> float | None:
        """Tokens per second at which the answer came so far; None while that is unknown."""
        times = self.received_at
        if len(times) < 2 or times[-1] <= times[0]:
            return None
        return (len(times) - 1) / (times[-1] - times[0])

    def decided(self, what: str) -> None:
        """Write `what` into the answer's log."""
        self.decisions.append(Decision(self.now(), what))

    def changed(self) -> None:
        """Record when the new tokens came, and wake all that wait."""
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

    async def next_change(self, within: float) -> None:
        """Return at the next change, or after `within` seconds."""
        bell = self._bell
        with anyio.move_on_after(within):
            await bell.wait()
