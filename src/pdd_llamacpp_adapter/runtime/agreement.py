"""How one answer will be made: by whom, at what rate, with what share of the prompt and what decode budget."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from pdd_core.break_even import break_even_budget
from pdd_core.planner.types import Plan, Verdict, Why
from pdd_core.refinement.guard import LEAST_TOKENS
from pdd_core.refinement.spans import LONGEST_LINE
from pdd_llamacpp_adapter.session.outcome import AnswerPlan
from pdd_llamacpp_adapter.session.session_start import fits

if TYPE_CHECKING:
    from pdd_core.env import ServeSettings
    from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
    from pdd_llamacpp_adapter.request import AnswerRequest, OwnSettings
    from pdd_llamacpp_adapter.runtime.planning import Facts, Planning

HEADROOM = 1.3
"""Of a computed decode budget over the break-even: the device takes over as soon as it has caught up, so what is
too much costs the cloud a few tokens, what is too little a further request."""
_LEAST_BUDGET = 4
_RATE_SHARE = 0.9
"""Of the device's own decode rate, where the rate is `auto`: answers are then shown evenly across the handoff."""
_LEAST_FRESH = 64
"""With fewer prompt tokens left to process, there is nothing worth refining."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Agreement:
    """How one answer is made."""

    request: AnswerRequest
    """With the decode budget and the share of the prompt to read."""
    plan: AnswerPlan
    rate: float
    """Tokens per second to show at most."""
    engine: bool
    """The device has a part."""
    cloud: bool
    """The cloud has a part."""


class Agreements:
    """Agrees on how each answer of one device is made. `speed` may learn meanwhile."""

    def __init__(self, settings: ServeSettings, planning: Planning, speed: DeviceSpeed, *, n_ctx: int) -> None:
        self._settings = settings
        self._planning = planning
        self._speed = speed
        self._n_ctx = n_ctx
        self._target = settings.refine_target
        self._warned = False

    def _for(self, own: OwnSettings) -> Agreements:
        """Return who agrees by the settings that one answer has: what was learnt is the same."""
        settings = own.over(self._settings)
        if settings is self._settings:
            return self
        made = copy.copy(self)
        made._settings, made._target = settings, settings.refine_target
        made._planning = self._planning.by(settings)
        made._warned = True  # the answer itself tells its client
        return made

    def agree(self, request: AnswerRequest, facts: Facts) -> Agreement:
        """Return how the answer to `request` is made, by the settings, the planner, and what is known now.

        Settings of its own come before the device's.

        A request that names the share of its prompt to read keeps it.

        Raises:
            PolicyError: the policies are strict, and one failed.
        """
        return self._for(request.own)._agree(request, facts)

    def _agree(self, request: AnswerRequest, facts: Facts) -> Agreement:
        info, prompt = facts.info, len(request.prompt_token_ids)
        cloud = facts.has_cloud and (info is None or prompt + request.max_tokens <= info.max_model_len)
        rate = self.rate(has_cloud=cloud) if facts.paced else math.inf
        if not cloud:
            why = "it does not fit the cloud" if facts.has_cloud else "there is no cloud"
            request = self._with_budget(request, rate, held=facts.held_whole)
            return Agreement(request, _fixed(Verdict.DEVICE_ONLY, why), rate, engine=True, cloud=False)

        # who asks for a refined prompt wants what only a handoff has; the settings only say how much one reads
        hand_over = request.refine_ratio is not None
        planner_refines = self._planning.asks and self._target.kind == "auto" and self._fits_whole(request)
        if not planner_refines:
            request = self._with_ratio(request, facts)
        if self._too_long(request, facts):
            plan = _fixed(Verdict.CLOUD_ONLY, "prompt and answer do not fit the device's context")
        else:
            refinable = planner_refines and request.refine_ratio is None
            plan = self._planning.plan(request, facts, rate=rate, refinable=refinable, hand_over=hand_over)

        differs = None if request.grammar is None else request.grammar.differs
        if differs is not None and plan.plan.verdict is Verdict.HANDOFF:
            plan = _fixed(Verdict.CLOUD_ONLY, f"both engines read the answer's format differently: {differs}")
        judged = facts.held_whole < facts.held  # a refined prompt that is held already
        request = self.planned(request, plan.plan, rate, held=facts.held, judged=judged)
        if plan.plan.verdict is Verdict.DEVICE_ONLY and facts.paced:
            rate = self.rate(has_cloud=False)
        return Agreement(request, plan, rate, engine=not self._too_long(request, facts), cloud=True)

    def _fits_whole(self, request: AnswerRequest) -> bool:
        return fits(request, self._n_ctx, refinable=False)

    def _too_long(self, request: AnswerRequest, facts: Facts) -> bool:
        """Whether the device's context is too small for the answer, and refinement is of no help."""
        info = facts.info
        return info is not None and not fits(request, self._n_ctx, refinable=info.refinement != "off")

    def _with_ratio(self, request: AnswerRequest, facts: Facts) -> AnswerRequest:
        """Return `request` with the share of its prompt that the settings have the device read."""
        if request.refine_ratio is not None:
            return request
        ratio = self.refine_ratio(len(request.prompt_token_ids), request.max_tokens, held=facts.held)
        if ratio is not None and facts.info is not None and facts.info.refinement == "off":
            if self._target.kind == "auto":
                return request
            if not self._warned:
                self._warned = True
                logger.warning("refine is %s, but the cloud refines no prompts", self._settings.refine)
        return replace(request, refine_ratio=ratio)

    def rate(self, *, has_cloud: bool) -> float:
        """Return the tokens per second to show at most."""
        match self._settings.rate:
            case "unlimited":
                return math.inf
            case "auto":
                step = self._speed.step_s
                return _RATE_SHARE / step if step and has_cloud else math.inf
            case rate:
                return rate

    def refine_ratio(self, prompt_tokens: int, max_tokens: int, *, held: int) -> float | None:
        """Return the share of a prompt to read, by the settings; None for all of it.

        Args:
            prompt_tokens: length of the prompt.
            max_tokens: the longest the answer can get.
            held: tokens of the prompt that the device has processed already.
        """

        def ratio(tokens: int, n_ctx: int) -> float | None:
            return self._target.ratio(
                tokens, prefill_tps=self._speed.prefill_tps, n_ctx=n_ctx, max_tokens=max_tokens
            )

        if prompt_tokens + max_tokens > self._n_ctx:
            # whole lines stay, so that a refined prompt may be that much longer than was asked for
            return ratio(prompt_tokens, self._n_ctx - LONGEST_LINE)
        # the cloud chooses among all tokens, and of its choice the device reads what is new: about that share
        fresh = prompt_tokens - held
        return None if fresh < _LEAST_FRESH else ratio(fresh, self._n_ctx)

    def planned(
        self, request: AnswerRequest, plan: Plan, rate: float, *, held: int, judged: bool = False
    ) -> AnswerRequest:
        """Return `request` as `plan` has it.

        A plan without a budget gets the settings': one that gives the answer to one side needs it once that side
        is lost, and one for a handoff leaves it to them. A plan of the device's own reads the whole prompt. With a
        budget goes the least that would do, as in `_with_budget`.
        """
        if plan.verdict is Verdict.HANDOFF:
            request = replace(request, refine_ratio=plan.refine_ratio)
        elif self._fits_whole(request):
            request = replace(request, refine_ratio=None)
        request = replace(request, kv=self._with_cells(request, plan))
        judged = judged or request.kv
        if plan.decode_budget is None:
            return self._with_budget(request, rate, held=held, judged=judged)
        budget = min(plan.decode_budget, request.max_tokens)
        least = self._computed_budget(request, rate, held, headroom=1.0, judged=judged)
        return replace(request, decode_budget=budget, least_budget=None if least is None else min(least, budget))

    def _with_cells(self, request: AnswerRequest, plan: Plan) -> bool:
        """Whether the device is to load the cloud's KV cache; a refined prompt has other positions."""
        kv = self._settings.kv
        possible = kv != "off" and plan.verdict is Verdict.HANDOFF and request.refine_ratio is None
        return possible and (plan.kv or kv == "always")

    def _with_budget(
        self, request: AnswerRequest, rate: float, *, held: int, judged: bool = False
    ) -> AnswerRequest:
        """Return `request` with the decode budget that the settings give it; `held` as for `refine_ratio`.

        With a computed one goes the least that would do, without head-room: the cloud may go down to it under
        load. Where what is held has to be `judged`, as a refined prompt has, it is enough for that.
        """
        budget = self._settings.decode_budget
        if budget != "auto":
            return replace(request, decode_budget=min(budget, request.max_tokens), least_budget=None)
        tokens, least = (
            self._computed_budget(request, rate, held, headroom=room, judged=judged) for room in (HEADROOM, 1.0)
        )
        return replace(
            request,
            decode_budget=min(tokens or request.max_tokens, request.max_tokens),
            least_budget=None if least is None else min(least, request.max_tokens),
        )

    def _computed_budget(
        self, request: AnswerRequest, rate: float, held: int, *, headroom: float, judged: bool
    ) -> int | None:
        """Return the tokens until the device has caught up; None if it never does."""
        prompt = len(request.prompt_token_ids)
        fresh, least = prompt - held, _LEAST_BUDGET
        if request.refine_ratio is not None:
            fresh = min(fresh, math.ceil(prompt * request.refine_ratio))
        if judged or request.refine_ratio is not None:
            least = max(least, LEAST_TOKENS + 1)  # the device goes on behind the last token that it judges
        prefill, step = self._speed.prefill_tps, self._speed.step_s
        if prefill is None or not step:
            return None  # nothing was measured: the cloud goes on until the device has caught up
        budget = break_even_budget(fresh, rate=min(rate, 1.0 / step), prefill_tps=prefill, headroom=headroom)
        return None if budget is None else max(least, budget)


def _fixed(verdict: Verdict, why: str) -> AnswerPlan:
    return AnswerPlan(Plan(verdict, why=Why(why)), "settings")
