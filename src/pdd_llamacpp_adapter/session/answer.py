"""The state of one answer: takes in what happened, says what may happen next. Knows no engine and no clock.

The answer has one owner at a time: only the owner's tokens count, the others are made in vain. It is the cloud's
until the device takes over, and becomes the cloud's again only if the device fails. No token is lost, repeated or
taken back, whatever the order of events.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.errors import CloudLost, DeviceEngineFailed
from pdd_core.timeline import Source
from pdd_llamacpp_adapter.cloud.cloud_stream import CloudEnd
from pdd_llamacpp_adapter.session.device_reading import Reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from pdd_core.errors import PDDError
    from pdd_core.timeline import TokenLogprobs
    from pdd_llamacpp_adapter.session.answer_text import AnswerText


class Answer:
    """One answer in the making.

    `cloud` and `device` say who takes part. `stop_ids` end the answer, and belong to it; `stop_token_ids` are
    those among them that the request named. `text` turns ids into text and finds stop strings; without it, text is
    what the cloud sends.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        *,
        max_tokens: int,
        stop_ids: Iterable[int] = (),
        stop_token_ids: Iterable[int] = (),
        text: AnswerText | None = None,
        cloud: bool,
        device: bool,
    ) -> None:
        self.prompt = tuple(prompt)
        self.max_tokens = max_tokens
        self.stop_ids = frozenset(stop_ids)
        self.owner = Source.CLOUD
        self.cloud_running = cloud
        """A leg of the cloud's is at work for this answer."""
        self.device_able = device
        self.in_vain = 0
        """Tokens that the cloud made and nobody could use."""
        self.cloud_error: PDDError | None = None
        """Why the cloud's last leg was lost."""
        self.device_error: PDDError | None = None
        self.finish_reason: str | None = None
        self.stop_reason: str | int | None = None
        """The stop string or token that ended the answer; None for the model's own end and for a length."""
        self.error: PDDError | None = None
        """Why nobody can go on; set together with finish reason ``error``."""
        self.sources: list[Source] = []
        self.texts: list[str] = []
        self.logprobs: list[TokenLogprobs | None] = []
        self.likelihoods: list[float | None] = []
        """Per token: the logprob that the cloud gave it; None where it gave none, and for the device's own."""
        self.tail = ""
        """Text that was withheld until the end, and did not come with a token."""
        self._stop_token_ids = frozenset(stop_token_ids)
        self._text = text
        self._ids: list[int] = []
        self.reading = Reading(self.prompt)
        """What the device has processed of prompt and answer."""

    def __len__(self) -> int:
        """Tokens of the answer so far."""
        return len(self._ids)

    def __getitem__(self, index: int) -> int:
        """Token `index` of the answer."""
        return self._ids[index]

    @property
    def ids(self) -> list[int]:
        """The answer so far."""
        return list(self._ids)

    @property
    def finished(self) -> bool:
        """No token will follow."""
        return self.finish_reason is not None

    @property
    def processed(self) -> int:
        """Tokens of prompt and answer that the device has processed."""
        return self.reading.processed

    @property
    def behind(self) -> int:
        """Tokens of prompt and answer that the device has not processed."""
        return self.reading.behind(self._ids)

    def pending(self, limit: int) -> list[int]:
        """Return the next tokens for the device to process, at most `limit`."""
        return self.reading.pending(self._ids, limit)

    @property
    def caught_up(self) -> bool:
        """The device has processed everything there is."""
        return self.device_able and self.behind == 0

    @property
    def may_take_over(self) -> bool:
        """The device is ready, and either the cloud has sent the first token or there is nothing to wait for."""
        waiting = self.cloud_running and not len(self)
        return self.owner is Source.CLOUD and self.caught_up and not self.finished and not waiting

    def take_over(self) -> bool:
        """Give the answer to the device if that is allowed now; return whether it was."""
        if not self.may_take_over:
            return False
        self.owner = Source.DEVICE
        self.cloud_running = False
        return True

    def cloud_sent(
        self,
        ids: Sequence[int],
        *,
        logprobs: Sequence[TokenLogprobs | None] = (),
        likelihoods: Sequence[float] = (),
        text: str = "",
    ) -> None:
        """Take tokens from the cloud's running leg, in its order. `text` counts only where there is no other.

        `logprobs` are for the client, `likelihoods` (each token's own logprob) for the device.
        """
        for position, token in enumerate(ids):
            if not self.cloud_running or self.finished:
                self.in_vain += len(ids) - position
                return
            self._append(token, Source.CLOUD, logprobs[position] if position < len(logprobs) else None)
            self.likelihoods[-1] = likelihoods[position] if position < len(likelihoods) else None
        if self._text is None and ids:
            self.texts[-1] += text  # never before its last token

    def cloud_ended(self, end: CloudEnd) -> None:
        """Record that the cloud's leg has ended as agreed."""
        if not self.cloud_running:
            return
        self.cloud_running = False
        if not self.finished and end is not CloudEnd.BUDGET:
            self._finish(end.value)

    def cloud_closed(self) -> None:
        """Take nothing more from the cloud's leg: the device has almost caught up."""
        self.cloud_running = False

    def cloud_lost(self, error: PDDError) -> None:
        """Record that the cloud's leg was lost."""
        if not self.cloud_running:
            return
        self.cloud_running = False
        if not self.finished:
            self.cloud_error = error

    def cloud_resumes(self) -> None:
        """Begin another leg of the cloud's, behind the tokens there are."""
        self.cloud_running = True
        self.owner = Source.CLOUD

    def device_processed(self, count: int) -> None:
        """Record that the device has processed the next `count` tokens."""
        self.reading.processed += count

    def device_made(self, token: int, logprobs: TokenLogprobs | None = None) -> None:
        """Take a token from the device, which owns the answer."""
        if self.owner is not Source.DEVICE or self.finished:
            raise DeviceEngineFailed("the device made a token for an answer that is not its own")
        self._append(token, Source.DEVICE, logprobs)

    def device_failed(self, error: PDDError) -> None:
        """Record that the device cannot go on with this answer."""
        if not self.finished:
            self.device_able = False
            self.device_error = error

    @property
    def stranded(self) -> bool:
        """Nobody is at work on the answer, and nobody will be unless the cloud begins another leg."""
        return not self.finished and not self.cloud_running and not self.device_able

    def give_up(self) -> None:
        """End a stranded answer: everything there is will be shown, then the error."""
        if self.stranded:
            self.error = self.cloud_error or self.device_error or CloudLost("neither engine can go on")
            self._finish("error")

    def _append(self, token: int, source: Source, logprobs: TokenLogprobs | None) -> None:
        self._ids.append(token)
        self.sources.append(source)
        self.logprobs.append(logprobs)
        self.likelihoods.append(None)
        ends = token in self.stop_ids  # and adds no text then, as in vLLM, unless such ends are to be shown
        if self._text is None or (ends and not self._text.keeps_stop):
            self.texts.append("")
        else:
            self.texts.append(self._text.push(token))
        if ends:
            self.stop_reason = token if token in self._stop_token_ids else None
            self._finish(CloudEnd.STOP.value)
        elif self._text is not None and self._text.stopped is not None:
            self.stop_reason = self._text.stopped
            self._finish(CloudEnd.STOP.value)
        elif len(self) >= self.max_tokens:
            self._finish(CloudEnd.LENGTH.value)
        if self.finished:
            self.texts[-1] += self.tail
            self.tail = ""

    def _finish(self, reason: str) -> None:
        self.finish_reason = reason
        if self._text is not None:
            self.tail = self._text.flush()
