"""One answer by two engines: the parts run side by side, the consumer sees one stream.

The life of a session:

1. ``async with`` starts both parts: the cloud streams, the device prefills.
2. Every token goes into one `Answer`; iteration shows its tokens in order, when the pacer says so.
3. When the device has processed everything there is, it takes over; the cloud is cancelled in the background.
4. The end of the answer stops whichever engine still works. So does leaving ``async with`` early.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self
from uuid import uuid4

import anyio

from pdd_core.errors import ConfigurationError, ContextOverflow
from pdd_core.hookspecs import PaceRequest
from pdd_core.optin import OptIn
from pdd_core.timeline import ShownToken, Source, Timeline
from pdd_llamacpp_adapter.answer import Answer
from pdd_llamacpp_adapter.cloud_part import CloudPart
from pdd_llamacpp_adapter.device_part import DevicePart
from pdd_llamacpp_adapter.live import LiveAnswer
from pdd_llamacpp_adapter.outcome import Mode, Outcome
from pdd_llamacpp_adapter.pacing import GuardedPacer, default_policies
from pdd_llamacpp_adapter.profile import Throttle

if TYPE_CHECKING:
    from types import TracebackType

    from anyio.abc import TaskGroup

    from pdd_core.plugins import Policies
    from pdd_llamacpp_adapter.cloud import CloudClient
    from pdd_llamacpp_adapter.device_part import Progress
    from pdd_llamacpp_adapter.engine import DeviceEngine
    from pdd_llamacpp_adapter.profile import DeviceProfile
    from pdd_llamacpp_adapter.request import AnswerRequest

FIRST_TOKEN_PATIENCE = 10.0
"""Seconds that a device which is ready waits for the cloud's first token."""


class AnswerSession:
    """Makes one answer. An async context manager, and an async iterator of `ShownToken` inside it::

        async with AnswerSession(request, engine=engine, cloud=cloud) as answer:
            async for token in answer:
                print(token.text, end="", flush=True)
        print(answer.outcome.finish_reason)

    With both engines the answer is handed over; with one, that one makes it alone. A cloud that cannot be reached,
    refuses, or is lost leaves the answer to the device, and its reason in `Outcome.cloud_error`.

    Args:
        request: what to answer.
        engine: the device, or None.
        cloud: the cloud, or None.
        policies: where the pacer comes from; default the built-in one and what is installed.
        rate: target of the pacing, tokens per second; ``inf`` shows each token as it comes.
        profile: hold the device to the speed of a slower one.
        first_token_patience: seconds that the device, once ready, waits for the cloud's first token.
        on_progress: called after every chunk the device has processed, before it takes over.

    Raises:
        ConfigurationError: neither engine is given, or `rate` is not positive.

    Iterating raises, after the last token there is, the error for which nobody could go on: a `CloudError` or a
    `DeviceError`.
    """

    def __init__(
        self,
        request: AnswerRequest,
        *,
        engine: DeviceEngine | None = None,
        cloud: CloudClient | None = None,
        policies: Policies | None = None,
        rate: float = 12.0,
        profile: DeviceProfile | None = None,
        first_token_patience: float = FIRST_TOKEN_PATIENCE,
        on_progress: Progress | None = None,
    ) -> None:
        if engine is None and cloud is None:
            raise ConfigurationError("a session needs an engine, a cloud, or both")
        if not rate > 0:
            raise ConfigurationError(f"rate must be a positive number of tokens per second, not {rate}")
        self._request = request
        self._engine = engine
        self._cloud = cloud
        self._policies = policies
        self._rate = rate
        self._profile = profile
        self._patience = first_token_patience
        self._on_progress = on_progress
        self._mode = _mode(engine, cloud)
        self._opt_in = OptIn(uuid4().hex, request.decode_budget) if self._mode is Mode.HANDOFF else None
        self._timeline = Timeline()
        self._due: float | None = None
        self._tasks: TaskGroup | None = None
        self._cloud_part: CloudPart | None = None
        self._device_part: DevicePart | None = None

    async def __aenter__(self) -> Self:
        """Start both parts.

        Raises:
            ConfigurationError: the session was used before; it makes one answer.
            ContextOverflow: prompt and answer do not fit the device's context; nothing was sent or computed.
            PolicyError: no usable pacer.
        """
        if self._tasks is not None:
            raise ConfigurationError("a session makes one answer: make a new one")
        self._check_room()
        request = self._request
        self._pacer = GuardedPacer.resolve(
            self._policies or default_policies(),
            PaceRequest(num_prompt_tokens=len(request.prompt_token_ids), max_tokens=request.max_tokens),
            self._rate,
        )
        vocab = None if self._engine is None else self._engine.vocab
        # the device's own idea of an end, until the cloud has told its
        own_stops = frozenset() if vocab is None else vocab.stop_ids
        self._live = LiveAnswer(
            Answer(
                request.prompt_token_ids,
                max_tokens=request.max_tokens,
                stop_ids=(*own_stops, *request.stop_token_ids),
                cloud=self._cloud is not None,
                device=self._engine is not None,
            )
        )
        self._detokenizer = None if vocab is None else vocab.detokenizer()
        if self._cloud is not None:
            self._cloud_part = CloudPart(self._cloud, request, self._live, opt_in=self._opt_in, vocab=vocab)
        if self._engine is not None:
            self._device_part = DevicePart(
                self._engine,
                request,
                self._live,
                throttle=Throttle(self._profile, self._live.now),
                patience=self._patience,
                on_progress=self._on_progress,
            )
        self._tasks = await anyio.create_task_group().__aenter__()
        for part in (self._cloud_part, self._device_part):
            if part is not None:
                self._tasks.start_soon(part.run)
        self._tasks.start_soon(self._release)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._tasks is None:
            return None
        self._tasks.cancel_scope.cancel()
        if isinstance(exc, anyio.get_cancelled_exc_class()):
            return await self._tasks.__aexit__(exc_type, exc, traceback)
        # the task group would wrap an error of the consumer's own in an ExceptionGroup
        await self._tasks.__aexit__(None, None, None)
        return None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ShownToken:
        answer, index = self._live.answer, len(self._timeline.tokens)
        await self._live.until(lambda: len(answer) > index or answer.finished)
        if index >= len(answer):
            if answer.error is not None:
                raise answer.error
            raise StopAsyncIteration
        await self._sleep_until_due(index)
        token = self._show(index)
        self._timeline.tokens.append(token)
        return token

    @property
    def outcome(self) -> Outcome:
        """What became of the answer, or has until now."""
        live, answer = self._live, self._live.answer
        return Outcome(
            mode=self._mode,
            finish_reason=self._finish_reason(),
            timeline=self._timeline,
            prompt_tokens=len(answer.prompt),
            decode_budget=None if self._opt_in is None else self._opt_in.decode_budget,
            handoff_id=None if self._opt_in is None else self._opt_in.handoff_id,
            caught_up_at=live.caught_up_at,
            took_over_at=live.took_over_at if self._mode is Mode.HANDOFF else None,
            cloud_tokens_in_vain=answer.in_vain,
            cloud_error=_named(answer.cloud_error),
            cancel_confirmed=None if self._cloud_part is None else self._cloud_part.cancel_confirmed,
            reused_tokens=0 if self._device_part is None else self._device_part.reused,
        )

    def _finish_reason(self) -> str:
        answer = self._live.answer
        if answer.finish_reason is None or len(self._timeline.tokens) < len(answer):
            return "cancelled"
        return answer.finish_reason

    def _check_room(self) -> None:
        needed = len(self._request.prompt_token_ids) + self._request.max_tokens
        if self._engine is not None and needed > self._engine.n_ctx:
            raise ContextOverflow(
                f"{len(self._request.prompt_token_ids)} prompt tokens and max_tokens {self._request.max_tokens} "
                f"do not fit the device's context of {self._engine.n_ctx}"
            )

    async def _release(self) -> None:
        """Stop each engine as soon as the answer no longer needs it."""
        answer = self._live.answer
        await self._live.until(lambda: answer.finished or answer.owner is Source.DEVICE)
        if self._cloud_part is not None and self._tasks is not None:
            self._tasks.start_soon(self._cloud_part.cancel)
        await self._live.until(lambda: answer.finished)
        if self._device_part is not None:
            self._device_part.stop()

    async def _sleep_until_due(self, index: int) -> None:
        live, answer = self._live, self._live.answer
        if self._due is None:  # kept when the consumer was interrupted while it waited
            self._due = self._pacer.due(
                live.now(),
                buffered=len(answer) - index,
                complete=answer.finished,
                ready_in=None if self._device_part is None else self._device_part.ready_in(),
            )
        # the first token is shown on arrival, whatever the pacer thinks
        if index > 0 and (left := self._due - live.now()) > 0:
            await anyio.sleep(left)
        self._due = None

    def _show(self, index: int) -> ShownToken:
        live, answer = self._live, self._live.answer
        return ShownToken(
            index=index,
            token_id=answer[index],
            text=self._text(index),
            source=Source.CLOUD if index < answer.cloud_tokens else Source.DEVICE,
            received_at=live.received_at[index],
            shown_at=live.now(),
        )

    def _text(self, index: int) -> str:
        answer = self._live.answer
        if self._detokenizer is None:
            return "" if self._cloud_part is None else self._cloud_part.texts.pop(index, "")
        text = self._detokenizer.push(answer[index])
        last = answer.finished and index == len(answer) - 1
        return text + self._detokenizer.flush() if last else text


def _mode(engine: DeviceEngine | None, cloud: CloudClient | None) -> Mode:
    if engine is None:
        return Mode.CLOUD_ONLY
    return Mode.DEVICE_ONLY if cloud is None else Mode.HANDOFF


def _named(error: Exception | None) -> str | None:
    return None if error is None else f"{type(error).__name__}: {error}"
