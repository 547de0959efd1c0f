"""One answer over two engines, as an async iterator of shown tokens.

The cloud's stream, the device's prefill and the consumer's pacing run side by side. The consumer gets each token
when it is due. The end of the answer stops the engine that still works, and so does leaving ``async with``.
"""

from __future__ import annotations

import secrets
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Self

import anyio

from pdd_core.errors import ConfigurationError, named
from pdd_core.hookspecs import FLUSH_WITHIN_S
from pdd_core.patience import Patience
from pdd_core.planner.types import Verdict
from pdd_core.refinement.guard import Guard
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed, WorkLeft
from pdd_llamacpp_adapter.session.answer_trace import AnswerTrace
from pdd_llamacpp_adapter.session.cells_check import CellsChecks
from pdd_llamacpp_adapter.session.conductor import Conductor
from pdd_llamacpp_adapter.session.device_part import DevicePart
from pdd_llamacpp_adapter.session.display import Display
from pdd_llamacpp_adapter.session.leg_plan import depends_on_output
from pdd_llamacpp_adapter.session.outcome import Mode, Outcome
from pdd_llamacpp_adapter.session.session_setup import SessionOptions
from pdd_llamacpp_adapter.session.session_start import set_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from anyio.abc import TaskGroup

    from pdd_core.errors import PDDError
    from pdd_core.handoff import CloudInfo
    from pdd_core.plugins import Policies
    from pdd_core.timeline import ShownToken
    from pdd_core.tracing import Tracing
    from pdd_llamacpp_adapter.cloud.cloud_client import CloudClient
    from pdd_llamacpp_adapter.engine.device_engine import DeviceEngine
    from pdd_llamacpp_adapter.engine.device_profile import DeviceProfile
    from pdd_llamacpp_adapter.engine.grammar import GrammarEngine
    from pdd_llamacpp_adapter.engine.speed import Work
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.session.arrivals import Arrivals
    from pdd_llamacpp_adapter.session.outcome import AnswerPlan
    from pdd_llamacpp_adapter.session.session_setup import Progress


class AnswerSession:
    """Makes one answer. An async context manager, and an async iterator of `ShownToken` inside it::

        async with AnswerSession(request, engine=engine, cloud=cloud) as answer:
            async for token in answer:
                print(token.text, end="", flush=True)
        print(answer.tail, answer.outcome.finish_reason)

    With both engines the answer is handed over, unless `verdict` gives it to one of them; with one, that one makes
    it alone. Whichever engine is lost, the other finishes; why is in `Outcome.decisions`.

    Args:
        request: what to answer.
        engine: the device, or None.
        cloud: the cloud, or None.
        told: what a cloud has told about itself that takes no part in this answer; default the cloud's own word.
        verdict: who makes the answer, where there are both; the other one only steps in.
        plan: how that was decided, for the outcome.
        vocab: turns ids into text where the device has no part but its model is at hand; default the engine's.
        policies: where the pacer comes from; default the built-in one and what is installed.
        rate: target of the pacing, tokens per second; ``inf`` shows each token as it comes.
        flush_within: seconds after its end by which all of an answer is shown; ``inf`` keeps to `rate`.
        profile: hold the device to the speed of a slower one.
        patience: time limits and retry budgets.
        speed: what is known of the engine's speed; learns from this answer.
        grammars: compiles grammars; needed only for a request that has one.
        guard: what tells from the cloud's tokens whether a refined prompt, or the cloud's KV cache, will do.
        cells_checks: which clouds' KV caches were compared with this engine's; learns from this answer.
        on_progress: called after every chunk the device has processed, before it takes over.
        on_cloud_error: called when the cloud is lost, with why.
        on_ended: called once, when everything has come to rest.
        tracing: makes OpenTelemetry spans of the answer, below the current one; None makes none.

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
        told: CloudInfo | None = None,
        verdict: Verdict = Verdict.HANDOFF,
        plan: AnswerPlan | None = None,
        vocab: Vocabulary | None = None,
        policies: Policies | None = None,
        rate: float = 12.0,
        flush_within: float = FLUSH_WITHIN_S,
        profile: DeviceProfile | None = None,
        patience: Patience | None = None,
        speed: DeviceSpeed | None = None,
        grammars: GrammarEngine | None = None,
        guard: Guard | None = None,
        cells_checks: CellsChecks | None = None,
        on_progress: Progress | None = None,
        on_cloud_error: Callable[[PDDError], object] | None = None,
        on_ended: Callable[[AnswerSession], object] | None = None,
        tracing: Tracing | None = None,
    ) -> None:
        if engine is None and cloud is None:
            raise ConfigurationError("a session needs an engine, a cloud, or both")
        if not rate > 0:
            raise ConfigurationError(f"rate must be a positive number of tokens per second, not {rate}")
        self._options = SessionOptions(
            engine=engine,
            cloud=cloud,
            told=told if cloud is None else cloud.info,
            mode=Mode.of(verdict, device=engine is not None, cloud=cloud is not None),
            vocab=vocab if engine is None else engine.vocab,
            policies=policies,
            rate=rate,
            flush_within=flush_within,
            profile=profile,
            patience=patience or Patience(),
            speed=speed or DeviceSpeed(),
            grammars=grammars,
            guard=guard or Guard(),
            cells_checks=cells_checks or CellsChecks(),
            on_progress=on_progress,
            on_cloud_error=on_cloud_error,
        )
        self._plan = plan
        self._on_ended = on_ended
        self._tracing = tracing
        self._trace: AnswerTrace | None = None
        # a cloud that loses its place begins again, and must then say the same
        sampled_anew = cloud is not None and depends_on_output(request) and request.seed is None
        self._request = replace(request, seed=secrets.randbits(31)) if sampled_anew else request
        self._tasks: TaskGroup | None = None
        self._device: DevicePart | None = None

    async def __aenter__(self) -> Self:
        """Start both parts.

        Raises:
            ConfigurationError: the session was used before; it makes one answer.
            ContextOverflow: prompt and answer do not fit the device's context; nothing was sent or computed.
            InvalidGrammar: the request's grammar cannot be compiled; nothing was sent or computed.
            InvalidRequest: a token id that the model does not have.
            PolicyError: no usable pacer.
        """
        if self._tasks is not None:
            raise ConfigurationError("a session makes one answer: make a new one")
        setup = self._setup = await set_up(self._request, self._options)
        if (engine := self._options.engine) is not None:
            self._device = DevicePart(setup, engine)
        self._tasks = await anyio.create_task_group().__aenter__()
        self._conductor = Conductor(setup, self._tasks, self._device)
        self._display = Display(setup, self._conductor, self._device)
        self._trace = None if self._tracing is None else AnswerTrace(self._tracing, setup.request, setup.live.now)
        with nullcontext() if self._trace is None else self._trace.current():
            self._tasks.start_soon(self._conductor.run)
            if self._device is not None:
                self._tasks.start_soon(self._device.run)
                self._tasks.start_soon(self._device.watch)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        if self._tasks is None:
            return None
        self._conductor.leave()
        self._tasks.cancel_scope.cancel()
        try:
            if isinstance(exc, anyio.get_cancelled_exc_class()):
                return await self._tasks.__aexit__(exc_type, exc, traceback)
            # the task group would wrap an error of the consumer's own in an ExceptionGroup
            await self._tasks.__aexit__(None, None, None)
            return None
        finally:
            if self._trace is not None:
                self._trace.end(self.outcome, self.work, exc)
            if self._on_ended is not None:
                self._on_ended(self)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ShownToken:
        if (token := await self._display.next()) is not None:
            return token
        if (error := self._setup.live.answer.error) is not None:
            raise error
        raise StopAsyncIteration

    @property
    def rate(self) -> float:
        """Target of the pacing, tokens per second; ``inf`` shows each token as it comes."""
        return self._options.rate

    @property
    def tail(self) -> str:
        """Text that was withheld until the answer ended, and belongs behind its last token; usually empty."""
        return self._setup.live.answer.tail if self._setup.live.shown == len(self._setup.live.answer) else ""

    @property
    def received_at(self) -> Sequence[float]:
        """Per token, those not shown yet among them: seconds since the request began. Grows with the answer."""
        return self._setup.live.received_at

    @property
    def outcome(self) -> Outcome:
        """What became of the answer, or has until now."""
        setup, conductor, device = self._setup, self._conductor, self._device
        live, answer, mode = setup.live, setup.live.answer, self._options.mode
        return Outcome(
            mode=mode,
            finish_reason=self._finish_reason(),
            stop_reason=answer.stop_reason,
            timeline=self._display.timeline,
            prompt_tokens=len(answer.prompt),
            decode_budget=self._request.decode_budget if mode is Mode.HANDOFF else None,
            handoff_id=conductor.handoff_id,
            caught_up_at=live.caught_up_at,
            took_over_at=None if mode is Mode.DEVICE_ONLY else live.took_over_at,
            cloud_tokens_in_vain=answer.in_vain,
            cloud_error=None if answer.cloud_error is None else named(answer.cloud_error),
            cancel_confirmed=conductor.cancel_confirmed,
            reused_tokens=0 if device is None else device.reused or 0,
            extensions=conductor.extensions,
            cloud_retries=conductor.retries,
            decisions=tuple(live.decisions),
            plan=self._plan,
            refinement=None if device is None else device.reader.report(),
            kv=None if device is None else device.reader.kv_report(),
        )

    @property
    def work(self) -> Work | None:
        """What the device's engine has done; None where the device has no part."""
        return None if self._device is None else self._device.work

    @property
    def arrivals(self) -> Arrivals | None:
        """When the tokens of the cloud's first leg came; None where there was none."""
        return self._conductor.first_arrivals

    def work_left(self) -> WorkLeft | None:
        """Return what the device has yet to do for this answer; None where it has, or had, no part."""
        if self._tasks is None or self._device is None or not self._device.needed:
            return None
        answer = self._setup.live.answer
        return WorkLeft(prompt_tokens=len(answer.prompt), to_read=answer.behind, made=len(answer))

    def _finish_reason(self) -> str:
        answer = self._setup.live.answer
        if answer.finish_reason is None or self._setup.live.shown < len(answer):
            return "cancelled"
        return answer.finish_reason
