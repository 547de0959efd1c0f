"""The state of one answer: what happened goes in, what may happen next comes out. Knows no engine and no clock.

The answer has one owner. It is the cloud's until the device takes over, once and for good; tokens that the cloud
sends after that are counted and dropped. No token is lost, repeated or taken back, whatever the order of events.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING

from pdd_core.errors import CloudLost, DeviceEngineFailed
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pdd_core.errors import PDDError


class CloudEnd(StrEnum):
    """How the cloud's part came to its regular end."""

    BUDGET = "budget"
    """The decode budget is used up: the device goes on."""
    STOP = "stop"
    LENGTH = "length"


class Answer:
    """One answer in the making.

    `cloud` and `device` say who takes part. `stop_ids` end the answer, and belong to it.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stop_ids: Iterable[int] = (),
        cloud: bool,
        device: bool,
    ) -> None:
        self.prompt = tuple(prompt)
        self.max_tokens = max_tokens
        self.stop_ids = frozenset(stop_ids)
        self.owner = Source.CLOUD
        self.cloud_running = cloud
        self.cloud_tokens = 0
        """Tokens of the answer that are the cloud's: always its first ones."""
        self.in_vain = 0
        """Tokens that the cloud sent after they could be used."""
        self.cloud_error: PDDError | None = None
        self.device_error: PDDError | None = None
        self.finish_reason: str | None = None
        self.error: PDDError | None = None
        """Why nobody can go on; set together with finish reason ``error``."""
        self._device_planned = device
        self._device_able = device
        self._sequence = list(self.prompt)
        self._processed = 0

    def __len__(self) -> int:
        """Tokens of the answer so far."""
        return len(self._sequence) - len(self.prompt)

    def __getitem__(self, index: int) -> int:
        """Token `index` of the answer."""
        return self._sequence[len(self.prompt) + index]

    @property
    def ids(self) -> list[int]:
        """The answer so far."""
        return self._sequence[len(self.prompt) :]

    @property
    def finished(self) -> bool:
        """No token will follow."""
        return self.finish_reason is not None

    @property
    def processed(self) -> int:
        """Tokens of prompt and answer that the device has processed."""
        return self._processed

    @property
    def behind(self) -> int:
        """Tokens of prompt and answer that the device has not processed."""
        return len(self._sequence) - self._processed

    def pending(self, limit: int) -> list[int]:
        """Return the next tokens for the device to process, at most `limit`."""
        return self._sequence[self._processed : self._processed + limit]

    @property
    def caught_up(self) -> bool:
        """The device has processed everything there is."""
        return self._device_able and self.behind == 0

    @property
    def may_take_over(self) -> bool:
        """The device is ready, and either the cloud has shown the first token or there is nothing to wait for."""
        waiting = self.cloud_running and not self.cloud_tokens
        return self.owner is Source.CLOUD and self.caught_up and not self.finished and not waiting

    def take_over(self) -> bool:
        """Give the answer to the device if that is allowed now; return whether it was."""
        if not self.may_take_over:
            return False
        self.owner = Source.DEVICE
        return True

    def cloud_sent(self, ids: Sequence[int]) -> None:
        """Take tokens from the cloud, in its order."""
        for position, token in enumerate(ids):
            if self.owner is not Source.CLOUD or self.finished or not self.cloud_running:
                self.in_vain += len(ids) - position
                return
            self.cloud_tokens += 1
            self._append(token)

    def cloud_ended(self, end: CloudEnd) -> None:
        """Take note that the cloud's part is over, as agreed."""
        self.cloud_running = False
        if self.finished or self.owner is not Source.CLOUD:
            return
        if end is not CloudEnd.BUDGET:
            self.finish_reason = end.value
        elif not self._device_planned:
            self.finish_reason = CloudEnd.LENGTH.value
        elif not self._device_able:
            self._nobody_left()

    def cloud_lost(self, error: PDDError) -> None:
        """Take note that nothing more comes from the cloud."""
        if not self.cloud_running:
            return
        self.cloud_running = False
        if self.finished or self.owner is not Source.CLOUD:
            return
        self.cloud_error = error
        if not self._device_able:
            self._nobody_left()

    def device_processed(self, count: int) -> None:
        """Take note that the device has processed the next `count` tokens."""
        self._processed += count

    def device_made(self, token: int) -> None:
        """Take a token from the device, which owns the answer."""
        if self.owner is not Source.DEVICE or self.finished:
            raise DeviceEngineFailed("the device made a token for an answer that is not its own")
        self._append(token)

    def device_failed(self, error: PDDError) -> None:
        """Take note that the device cannot go on."""
        if self.finished:
            return
        self._device_able = False
        self.device_error = error
        if self.owner is Source.DEVICE or not self.cloud_running:
            self._nobody_left()

    def _append(self, token: int) -> None:
        self._sequence.append(token)
        if token in self.stop_ids:
            self.finish_reason = CloudEnd.STOP.value
        elif len(self) >= self.max_tokens:
            self.finish_reason = CloudEnd.LENGTH.value

    def _nobody_left(self) -> None:
        self.finish_reason = "error"
        self.error = self.device_error or self.cloud_error or CloudLost("neither engine can go on")
