"""One answer, from its place in the queue to its last step: what every route that answers has in common."""

from __future__ import annotations

import json
import logging
import time
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from uuid import uuid4

import anyio

from pdd_core.errors import PDDError
from pdd_core.session_id import session_id, session_of_client
from pdd_llamacpp_adapter.server.answers.prepared_answer import AnswerStep, Finished, PreparedAnswer
from pdd_llamacpp_adapter.server.answers.transcript import Transcript
from pdd_llamacpp_adapter.server.wire.failures import INTERNAL, ErrorObject, error_object

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from pdd_llamacpp_adapter.server.answers.service import AnswerSource, Service
    from pdd_llamacpp_adapter.server.wire.json_body import Json
    from pdd_llamacpp_adapter.session.answer_session import AnswerSession
    from pdd_llamacpp_adapter.session.outcome import Outcome

logger = logging.getLogger(__name__)
decisions = logging.getLogger("pdd_llamacpp_adapter.decisions")


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One request for an answer, as the books know it."""

    service: Service
    runtime: AnswerSource
    route: str
    """The route's pattern."""
    request_id: str
    """What came or goes as ``x-request-id``."""
    answer_id: str
    """What the answer's objects have as `id`."""
    group: str = ""
    """Whose answers are alike: the app or tenant, as far as it can be told."""
    named_session: str = ""
    """What the client itself calls the conversation; empty where it does not."""
    conversation_id: str = ""
    """The same, for its stream to be kept and read again."""
    created: int = field(default_factory=lambda: int(time.time()))
    """Unix seconds."""

    @property
    def model(self) -> str:
        """The name under which the model is served."""
        return self.runtime.model_name

    def session(self, *beginning: str) -> str:
        """Return what the conversation is called before routers: the client's own name, or one of our making."""
        return session_of_client(self.named_session) if self.named_session else session_id(self.group, *beginning)


def new_id(prefix: str) -> str:
    """Return an id that nobody can guess, such as ``chatcmpl-…``."""
    return f"{prefix}{uuid4().hex}"


class RunningAnswer:
    """An answer that waits, is made, or has ended.

    Args:
        call: the request it answers.
        prepared: what to answer.
        paced: show the answer at the speed the user is to see; False for a client that waits for all of it.
        described: makes the JSON by which the answer can be retrieved, while it is made and after its end;
            None for answers that cannot be.
    """

    def __init__(
        self,
        call: Call,
        prepared: PreparedAnswer,
        *,
        paced: bool,
        described: Callable[[RunningAnswer], Json] | None = None,
    ) -> None:
        self.call = call
        self.transcript = Transcript(keep_logprobs=prepared.request.logprobs is not None)
        self.finished: Finished | None = None
        self.error: ErrorObject | None = None
        """Why there is no end, if there is none."""
        self.id_went_out = False
        """Whether its client has begun to receive it. Of a refused one nobody ever knows the id."""
        self._described = described
        self._prepared = prepared
        self._paced = paced
        self._ended = False
        self._session: AnswerSession | None = None
        self._withholding: AnswerSession | None = None
        self._scope = anyio.CancelScope()
        self._outcome: Outcome | None = None

    @property
    def answer_id(self) -> str:
        """What its objects have as `id`."""
        return self.call.answer_id

    @property
    def is_retrievable(self) -> bool:
        """Whether it can be read by its id."""
        return self._described is not None

    def described(self) -> Json:
        """Return the answer as it is now. Only for one that `is_retrievable`."""
        return {} if self._described is None else self._described(self)

    @property
    def outcome(self) -> Outcome | None:
        """What became of the answer, or has until now; None before its session began."""
        return self._outcome if self._session is None else self._session.outcome

    @property
    def status(self) -> str:
        """``running`` (or waiting), ``finished``, ``failed``, or ``cancelled`` when its client left."""
        if self.finished is not None:
            return "finished"
        if self.error is not None:
            return "failed"
        return "cancelled" if self._ended else "running"

    @property
    def is_known(self) -> bool:
        """Whether there is something to read, or somebody who may ask what became of it."""
        return self.finished is not None or bool(self.transcript.tokens) or self.id_went_out

    def stop(self, why: ErrorObject) -> None:
        """End the answer with the error `why`, unless it has ended. Both engines are free at once."""
        if self.finished is None and self.error is None:
            self.error = why
            self._scope.cancel()

    async def run(self, emit: Callable[[AnswerStep | Finished], Awaitable[None]]) -> None:
        """Wait for a place, make the answer, and `emit` it step by step, `Finished` last.

        Raises nothing but cancellation: without a `Finished`, `error` says why.
        """
        with self._books():
            try:
                with self._scope:
                    await self._run(emit)
            except PDDError as error:
                self._failed(error_object(error), error)
            except Exception as error:
                logger.exception("answer %s failed", self.answer_id)
                self._failed(INTERNAL, error)
            if self.finished is None:
                try:
                    await self._rest(emit)
                except Exception:
                    logger.exception("answer %s: what was held back is lost", self.answer_id)

    async def _run(self, emit: Callable[[AnswerStep | Finished], Awaitable[None]]) -> None:
        async with self.call.service.queue.place() as leave_place:
            parser = self._prepared.parser
            async with self.call.runtime.session(
                self._prepared.request, paced=self._paced, group=self.call.group
            ) as session:
                self._session = self._withholding = session
                async for token in session:
                    await self._step(emit, AnswerStep(parser.push(token.text), token, session.received_at))
                await self._rest(emit)
                outcome = session.outcome
                called = parser.made_tool_calls and outcome.finish_reason == "stop"
                self.finished = Finished(outcome, "tool_calls" if called else outcome.finish_reason)
                self.error = None  # told to stop too late
                # now, not when both engines have come to rest: the client may ask again at once
                leave_place()
                await emit(self.finished)

    async def _rest(self, emit: Callable[[AnswerStep | Finished], Awaitable[None]]) -> None:
        """Give out what was held back, once: it belongs to the answer, also to one that failed."""
        session, self._withholding = self._withholding, None
        if session is None:
            return
        parser, tail = self._prepared.parser, session.tail
        rest = [*(parser.push(tail) if tail else ()), *parser.finish()]
        if rest:
            await self._step(emit, AnswerStep(rest, None))

    async def _step(self, emit: Callable[[AnswerStep | Finished], Awaitable[None]], step: AnswerStep) -> None:
        self.transcript.add(step)
        await emit(step)

    def _failed(self, why: ErrorObject, error: Exception) -> None:
        if self.finished is not None:
            logger.warning("answer %s was complete, then: %s", self.answer_id, type(error).__name__)
        elif self.error is None:
            self.error = why

    @contextmanager
    def _books(self) -> Iterator[None]:
        service = self.call.service
        service.begun(self)
        try:
            yield
        finally:
            self._outcome, self._session, self._ended = self.outcome, None, True
            if self._outcome is not None:
                service.metrics.count_answer(self._outcome)
            service.recent.add(self._outcome, self.error)
            _log_decision(self.call, self._outcome, self.error)
            service.ended(self)


def _log_decision(call: Call, outcome: Outcome | None, error: ErrorObject | None) -> None:
    """Log one line that says who made the answer and why. Never any of its text.

    `outcome` is None when its session never began.
    """
    if not decisions.isEnabledFor(logging.INFO):
        return
    line: dict[str, object] = {"request_id": call.request_id, "id": call.answer_id, "route": call.route}
    if error is not None:
        # an error's message may quote the request; its code may not
        line["error"] = {"status": error.status, "type": error.type, "code": error.code}
    if outcome is not None:
        summary = outcome.summary()
        if outcome.cloud_error is not None:  # likewise: a cloud's refusal may quote what it was sent
            summary["cloud_error"] = outcome.cloud_error.partition(":")[0]
        line.update(summary)
        if outcome.plan is not None:
            line["plan"] = outcome.plan.short()
    decisions.info("%s", json.dumps(line, separators=(",", ":"), default=str))
