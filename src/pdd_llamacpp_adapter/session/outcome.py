"""What became of one answer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from pdd_core.timeline import Source

if TYPE_CHECKING:
    from pdd_core.planner.types import Plan, Verdict
    from pdd_core.timeline import Timeline
    from pdd_llamacpp_adapter.session.live_answer import Decision


class Mode(StrEnum):
    """Who was to make the answer. What each engine did is in the timeline."""

    HANDOFF = "handoff"
    DEVICE_ONLY = "device_only"
    CLOUD_ONLY = "cloud_only"

    @classmethod
    def of(cls, verdict: Verdict, *, device: bool, cloud: bool) -> Mode:
        """Return how `verdict` can be obeyed with the sides there are; at least one."""
        if not (device and cloud):
            return cls.DEVICE_ONLY if device else cls.CLOUD_ONLY
        return cls[verdict.name]


@dataclass(frozen=True, slots=True, kw_only=True)
class RefinementReport:
    """What became of an answer's refined prompt."""

    ratio: float | None = None
    """The share of the prompt's tokens that was asked for; None where only earlier turns were refined."""
    kept_tokens: int | None = None
    """Of the prompt's tokens, by the cloud's choice; None where it made none."""
    saved_tokens: int = 0
    """Prompt tokens that the device did not have to process because of it."""
    guard: str | None = None
    """``agreed``, ``disagreed`` (the full prompt was read after all), ``too_few_tokens`` to judge by, or None
    without a verdict."""
    guard_excess: float | None = None
    """Nats per token by which the device found the cloud's tokens less likely, where that was worst; see
    `pdd_core.refinement.guard.Guard.excess`."""
    guard_tokens: int = 0
    """Tokens that the guard judged by."""
    reason: str | None = None
    """Why the device read no refined prompt: ``not_enabled`` and the other reasons of the wire, ``unavailable``
    (no answer), ``invalid`` (one that breaks the contract), ``too_late`` (nothing was left to save),
    ``too_many_spans`` (more parts of the prompt have to stay than a cloud takes)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KVReport:
    """What became of the cells of the cloud's KV cache that an answer asked for."""

    cells: int = 0
    """Cells that took the place of prefill on the device."""
    prefilled: int = 0
    """Prompt tokens that the device processed itself before its answer."""
    bytes: int = 0
    """Received, those of pieces that nobody needed any more included."""
    seconds: float = 0.0
    """For which cells were received."""
    guard: str | None = None
    """As in `RefinementReport.guard`, of the cells; None where none were joined."""
    guard_excess: float | None = None
    """As in `RefinementReport.guard_excess`."""
    reason: str | None = None
    """Why there are no cells: a reason of the wire (``not_enabled`` and so on), ``differs`` (another model, or
    unlike cells), ``unavailable`` (no answer), ``invalid`` (what came breaks the contract), ``too_late`` (nothing
    was left to save), ``guard`` (they were dropped again). None where cells were joined."""


@dataclass(frozen=True, slots=True)
class AnswerPlan:
    """An answer's plan, and the policy that made it."""

    plan: Plan
    by: str
    """Name of the plugin: ``planner``, or a third party's; ``settings`` where these leave no choice."""

    def summary(self) -> dict[str, object]:
        """Return it JSON-ready, with all that was looked at."""
        return {**self._decision(), **self.plan.why.as_json()}

    def short(self) -> dict[str, object]:
        """Return it JSON-ready for a line of the log: what was known, and each alternative in a few words."""
        why = self.plan.why
        return {
            **self._decision(),
            "reason": why.reason,
            "inputs": why.as_json()["inputs"],
            "alternatives": [str(one) for one in why.alternatives],
        }

    def _decision(self) -> dict[str, object]:
        plan = self.plan
        return {
            "verdict": plan.verdict.value,
            "decode_budget": plan.decode_budget,
            "refine_ratio": plan.refine_ratio,
            "kv": plan.kv,
            "by": self.by,
        }


@dataclass(frozen=True, slots=True)
class Outcome:
    """A session's result; all times in seconds since the request began."""

    mode: Mode
    finish_reason: str
    """``stop``, ``length``, ``error`` (nobody could go on) or ``cancelled`` (the consumer left before the end)."""
    timeline: Timeline
    """The tokens that were shown."""
    prompt_tokens: int
    decode_budget: int | None
    """What the cloud was asked to decode at most; None when the cloud decided, or had no handoff to prepare."""
    handoff_id: str | None
    caught_up_at: float | None
    """When the device had first processed the prompt and every token received by then."""
    took_over_at: float | None
    """When the answer became the device's; None if it never did, or was from the start."""
    cloud_tokens_in_vain: int
    """Tokens the cloud sent after the take-over."""
    cloud_error: str | None
    """``Type: message`` of why the cloud had no part or was lost."""
    cancel_confirmed: bool | None
    """Whether the cloud confirmed that it stopped; None if nothing had to be cancelled, or it gave no answer."""
    reused_tokens: int
    """Prompt tokens that the device found in its context from an earlier answer."""
    stop_reason: str | int | None = None
    """The request's stop string or token that ended the answer; None for the model's own end and for a length."""
    extensions: int = 0
    """Further budgets that the cloud was asked for because the device was late."""
    cloud_retries: int = 0
    """Further attempts after the cloud was lost."""
    decisions: tuple[Decision, ...] = ()
    """What was decided about the answer and when; no text of prompt or answer."""
    refinement: RefinementReport | None = None
    """What became of the refined prompt; None where none was asked for and none was read."""
    kv: KVReport | None = None
    """What became of the cloud's KV cache; None where it was not asked for."""
    plan: AnswerPlan | None = None
    """Who was to make the answer, and why; None where there was nothing to decide."""

    def summary(self) -> dict[str, object]:
        """Return what happened, JSON-ready and without any text: the ``pdd`` object of the device's server."""
        timeline = self.timeline
        return {
            "mode": self.mode.value,
            "finish_reason": self.finish_reason,
            "tokens": {
                "prompt": self.prompt_tokens,
                "reused": self.reused_tokens,
                "cloud": timeline.count(Source.CLOUD),
                "device": timeline.count(Source.DEVICE),
                "cloud_in_vain": self.cloud_tokens_in_vain,
            },
            "ttft_s": _rounded(timeline.ttft),
            "tpot_mean_s": _rounded(timeline.tpot_mean),
            "max_gap_s": _rounded(timeline.tpot_max),
            "caught_up_s": _rounded(self.caught_up_at),
            "took_over_s": _rounded(self.took_over_at),
            "extensions": self.extensions,
            "cloud_retries": self.cloud_retries,
            "cloud_error": self.cloud_error,
            "refinement": self._refinement(),
            "kv": self._kv(),
            "plan": None if self.plan is None else self.plan.summary(),
            "decisions": [{"at_s": _rounded(one.at), "what": one.what} for one in self.decisions],
        }

    def _refinement(self) -> dict[str, object] | None:
        report = self.refinement
        if report is None:
            return None
        return {
            "prompt_tokens": self.prompt_tokens,
            **asdict(report),
            "guard_excess": _rounded(report.guard_excess),
        }

    def _kv(self) -> dict[str, object] | None:
        report = self.kv
        if report is None:
            return None
        return {
            **asdict(report),
            "seconds": _rounded(report.seconds),
            "guard_excess": _rounded(report.guard_excess),
        }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)
