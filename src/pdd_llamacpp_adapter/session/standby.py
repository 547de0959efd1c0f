"""A device in reserve: the cloud makes the answer alone. The device steps in if it is lost, or goes silent."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import CloudLost
from pdd_llamacpp_adapter.session.outcome import Mode

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.session.session_setup import SessionSetup


class Standby:
    """Says when a device in reserve has work, and when it may step in. Of any other device: always.

    A short silence makes the device get ready, which costs nobody anything but energy. A cloud that speaks again
    before it is ready keeps the answer.
    """

    def __init__(self, setup: SessionSetup) -> None:
        self._live = setup.live
        self._patience = setup.options.patience
        self._rate = setup.options.rate
        self._speed = setup.options.speed
        self._ended = anyio.Event()
        if setup.options.mode is not Mode.CLOUD_ONLY:
            self._ended.set()

    @property
    def in_reserve(self) -> bool:
        """The cloud makes the answer, and is not lost."""
        return not self._ended.is_set()

    @property
    def cloud_speaks(self) -> bool:
        """The device is in reserve, and has nothing to do."""
        return self.in_reserve and self._live.silence < self._patience.standby_s

    def end(self) -> None:
        """Have the device make the answer, as fast as it can."""
        self._ended.set()

    async def over(self) -> None:
        """Return when the device has work: the cloud is lost, or was silent for `Patience.standby_s`."""
        limit = self._patience.standby_s
        while self.in_reserve and (left := limit - self._live.silence) > 0:
            with anyio.move_on_after(left):  # not at every token
                await self._ended.wait()
        if self.in_reserve:
            self._live.decided(f"the device gets ready: no token of the cloud's within {limit:g} s")

    @property
    def left(self) -> float:
        """Seconds of silence until a device that is ready may step in."""
        if not self.in_reserve:
            return 0.0
        step_s = self._speed.step_s
        keeps_pace = step_s is not None and step_s * self._rate <= 1.0
        # a slower device would make the rest of the answer stutter, so the cloud gets longer to come back
        limit = self._patience.standby_s if keeps_pace else self._patience.first_token_s
        return max(0.0, limit - self._live.silence)

    def step_in(self) -> bool:
        """Count a silent cloud as lost, if a device that is ready may step in; return whether it may."""
        if self.left > 0:
            return False
        if self.in_reserve:
            self._live.answer.cloud_lost(CloudLost(f"no token within {self._live.silence:.3g} s"))
            self.end()
        return True
