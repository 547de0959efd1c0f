"""The spans of one answer, made of its outcome when it has ended: nothing is done per token."""

from __future__ import annotations

import time
from bisect import bisect
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pdd_core.errors import PDDError
from pdd_core.timeline import Source
from pdd_core.tracing import NANOSECONDS, filled
from pdd_llamacpp_adapter.cloud.cloud_part import TRACED, TracedAnswer
from pdd_llamacpp_adapter.session.outcome import Mode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pdd_core.timeline import ShownToken
    from pdd_core.tracing import Tracing, Value
    from pdd_llamacpp_adapter.cloud.cloud_part import CloudPart
    from pdd_llamacpp_adapter.engine.speed import Work
    from pdd_llamacpp_adapter.request import AnswerRequest
    from pdd_llamacpp_adapter.session.outcome import Outcome


class AnswerTrace:
    """Begins with the answer, as a child of the current span.

    Args:
        tracing: makes the spans.
        request: what is asked.
        now: seconds since the answer began.
    """

    def __init__(self, tracing: Tracing, request: AnswerRequest, now: Callable[[], float]) -> None:
        self._began_ns = time.time_ns() - int(now() * NANOSECONDS)
        span = tracing.begin(
            "pdd.answer",
            filled(
                {
                    "gen_ai.request.max_tokens": request.max_tokens,
                    "gen_ai.request.temperature": request.temperature,
                    "gen_ai.request.top_p": request.top_p,
                    "gen_ai.request.top_k": request.top_k,
                    "gen_ai.request.seed": request.seed,
                    "gen_ai.usage.input_tokens": len(request.prompt_token_ids),
                }
            ),
            start_ns=self._began_ns,
        )
        self._traced = TracedAnswer(tracing, span, now, self._ns)

    @contextmanager
    def current(self) -> Iterator[None]:
        """Let the tasks that begin inside work for this answer."""
        token = TRACED.set(self._traced)
        try:
            with self._traced.tracing.current(self._traced.span):
                yield
        finally:
            TRACED.reset(token)

    def end(self, outcome: Outcome, work: Work | None, error: BaseException | None) -> None:
        """End all spans of the answer.

        Args:
            outcome: what became of it.
            work: what the device has done; None where it has no part.
            error: what its consumer gets, if it is one.
        """
        ended_ns, parts = self._ns(self._traced.now()), self._traced.cloud_parts
        for part, came_at in zip(parts, _by_part(outcome.timeline.tokens, parts), strict=True):
            part.finish(came_at)
        worked = work is not None and (work.read_tokens or work.decoded_tokens or outcome.caught_up_at is not None)
        if work is not None and worked:
            self._device_part(outcome, work, ended_ns)
        span = self._traced.span
        if span.is_recording():
            span.set_attributes(_attributes(outcome))
            for decision in outcome.decisions:
                # what follows may name an error with its message
                what = decision.what.partition(":")[0]
                span.add_event("pdd.decision", {"pdd.decision": what}, self._ns(decision.at))
            if outcome.took_over_at is not None:
                span.add_event("pdd.switch", _switch(outcome.timeline.tokens), self._ns(outcome.took_over_at))
        if isinstance(error, PDDError):
            self._traced.tracing.fail(span, error)
        span.end(ended_ns)

    def _device_part(self, outcome: Outcome, work: Work, ended_ns: int) -> None:
        began_at, parts = 0.0, self._traced.cloud_parts
        if outcome.mode is Mode.CLOUD_ONLY and parts:
            began_at = parts[0].ended_at or 0.0  # it is the device's only once the cloud is lost
        made = [token for token in outcome.timeline.tokens if token.source is Source.DEVICE]
        span = self._traced.tracing.begin(
            "pdd.device_part",
            {
                "gen_ai.usage.output_tokens": len(made),
                "pdd.read_tokens": work.read_tokens,
                "pdd.read_s": work.read_s,
                "pdd.reused_tokens": outcome.reused_tokens,
                "pdd.decoded_tokens": work.decoded_tokens,
                "pdd.decoded_s": work.decoded_s,
            },
            parent=self._traced.span,
            start_ns=self._ns(began_at),
        )
        if outcome.caught_up_at is not None:
            span.add_event("pdd.caught_up", timestamp=self._ns(outcome.caught_up_at))
        span.end(self._ns(made[-1].received_at) if made else ended_ns)

    def _ns(self, seconds: float) -> int:
        """Return a time of the answer's clock in nanoseconds since 1970."""
        return self._began_ns + int(seconds * NANOSECONDS)


def _by_part(tokens: Sequence[ShownToken], parts: Sequence[CloudPart]) -> list[list[float]]:
    """Return when the cloud's tokens came, by the request that brought them; no two of these run at a time."""
    begins = [part.began_at for part in parts]
    came_at: list[list[float]] = [[] for _ in parts]
    for token in tokens:
        if token.source is Source.CLOUD and parts:
            came_at[max(0, bisect(begins, token.received_at) - 1)].append(token.received_at)
    return came_at


def _attributes(outcome: Outcome) -> dict[str, Value]:
    timeline, plan, refinement = outcome.timeline, outcome.plan, outcome.refinement
    cloud_error = outcome.cloud_error
    return filled(
        {
            "gen_ai.response.finish_reasons": [outcome.finish_reason],
            "gen_ai.usage.output_tokens": len(timeline.tokens),
            "pdd.mode": outcome.mode.value,
            "pdd.decode_budget": outcome.decode_budget,
            "pdd.cloud_tokens": timeline.count(Source.CLOUD),
            "pdd.device_tokens": timeline.count(Source.DEVICE),
            "pdd.cloud_tokens_in_vain": outcome.cloud_tokens_in_vain,
            "pdd.reused_tokens": outcome.reused_tokens,
            "pdd.extensions": outcome.extensions,
            "pdd.cloud_retries": outcome.cloud_retries,
            "pdd.cancel_confirmed": outcome.cancel_confirmed,
            # its message may quote what the cloud was sent
            "pdd.cloud_error": None if cloud_error is None else cloud_error.partition(":")[0],
            "pdd.ttft_s": timeline.ttft,
            "pdd.tpot_mean_s": timeline.tpot_mean,
            "pdd.max_gap_s": timeline.tpot_max,
            "pdd.plan.verdict": None if plan is None else plan.plan.verdict.value,
            "pdd.plan.by": None if plan is None else plan.by,
            "pdd.refined.kept_tokens": None if refinement is None else refinement.kept_tokens,
            "pdd.refined.saved_tokens": None if refinement is None else refinement.saved_tokens,
            "pdd.refined.guard": None if refinement is None else refinement.guard,
            "pdd.refined.reason": None if refinement is None else refinement.reason,
        }
    )


def _switch(tokens: list[ShownToken]) -> dict[str, Value]:
    """Return what the user saw of the switch; nothing where no token of the device was shown."""
    first = next((index for index, token in enumerate(tokens) if token.source is Source.DEVICE), 0)
    if not first:
        return {}
    return {"pdd.cloud_tokens": first, "pdd.gap_s": tokens[first].shown_at - tokens[first - 1].shown_at}
