"""Shows one answer: each token when its pacer says so."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_core.timeline import ShownToken, Timeline
from pdd_llamacpp_adapter.session.pacing import recent_step

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.session.conductor import Conductor
    from pdd_llamacpp_adapter.session.device_part import DevicePart
    from pdd_llamacpp_adapter.session.session_setup import SessionSetup


class Display:
    """The user's side of a live answer. Tokens leave it in order, once, and never before they are there."""

    def __init__(self, setup: SessionSetup, conductor: Conductor, device: DevicePart | None) -> None:
        self._live = setup.live
        self._pacer = setup.pacer
        self._speed = setup.options.speed
        self._conductor = conductor
        self._device = device
        self.timeline = Timeline()
        """What was shown."""

    async def next(self) -> ShownToken | None:
        """Wait for the next token and until it is due; None at the end of the answer."""
        live, answer, index = self._live, self._live.answer, self._live.shown
        await live.until(lambda: len(answer) > index or answer.finished)
        if index >= len(answer):
            return None
        if index:  # the first token is shown on arrival
            await self._until_due(index)
        token = self._show(index)
        self.timeline.tokens.append(token)
        live.shown = index + 1
        return token

    async def _until_due(self, index: int) -> None:
        """Wait until the token at hand is due. The pacer is asked anew whenever something has changed."""
        live = self._live
        while True:
            now = live.now()
            due = self._pacer.due(
                now,
                shown=index,
                shown_at=self.timeline.tokens[-1].shown_at,
                buffered=live.buffered,
                complete=live.answer.finished,
                **self._forecast(now),
            )
            if (left := due - live.now()) <= 0:
                return
            await live.next_change(within=left)

    def _forecast(self, now: float) -> dict[str, Any]:
        """Return the keywords of `Pacer.due` that look ahead; `now` in seconds since the request began."""
        received_at, device = self._live.received_at, self._device
        return {
            "cloud_left": self._conductor.cloud_left(),
            "cloud_step": recent_step(received_at),
            "ready_in": None if device is None else device.ready_in(),
            "device_step": None if device is None else self._speed.step_s,
            "idle": now - received_at[-1],
        }

    def _show(self, index: int) -> ShownToken:
        live, answer = self._live, self._live.answer
        text = answer.texts[index]
        if answer.finished and index == len(answer) - 1:
            text, answer.tail = text + answer.tail, ""
        return ShownToken(
            index=index,
            token_id=answer[index],
            text=text,
            source=answer.sources[index],
            received_at=live.received_at[index],
            shown_at=live.now(),
            logprobs=answer.logprobs[index],
        )
