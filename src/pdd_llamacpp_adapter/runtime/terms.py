"""The terms of an answer, from settings and measured speed: its rate, the prompt's share, the decode budget."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pdd_core.break_even import break_even_budget
from pdd_core.planner.types import Verdict
from pdd_core.refinement.guard import LEAST_TOKENS
from pdd_core.refinement.spans import LONGEST_LINE

if TYPE_CHECKING:
    from pdd_core.env import ServeSettings
    from pdd_core.planner.types import Plan
    from pdd_llamacpp_adapter.engine.speed import DeviceSpeed
    from pdd_llamacpp_adapter.request import AnswerRequest

HEADROOM = 1.3
"""Of a computed decode budget over the break-even: the device takes over as soon as it has caught up, so what is
too much costs the cloud a few tokens, what is too little a further request."""
_LEAST_BUDGET = 4
_RATE_SHARE = 0.9
"""Of the device's own decode rate, where the rate is `auto`: answers are then shown evenly across the handoff."""
_LEAST_FRESH = 64
"""With fewer prompt tokens left to process, there is nothing worth refining."""


class Terms:
    """Sets the terms of every answer on one device. `speed` may learn meanwhile."""

    def __init__(self, settings: ServeSettings, speed: DeviceSpeed, *, n_ctx: int) -> None:
        self._settings = settings
        self._speed = speed
        self._n_ctx = n_ctx
        self._target = settings.refine_target

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
        budget goes the least that would do, as in `with_budget`.
        """
        if plan.verdict is not Verdict.HANDOFF and request.refine_ratio is not None:
            if len(request.prompt_token_ids) + request.max_tokens <= self._n_ctx:
                request = replace(request, refine_ratio=None)
        elif plan.verdict is Verdict.HANDOFF:
            request = replace(request, refine_ratio=plan.refine_ratio)
        if plan.decode_budget is None:
            return self.with_budget(request, rate, held=held, judged=judged)
        budget = min(plan.decode_budget, request.max_tokens)
        least = self._computed_budget(request, rate, held, headroom=1.0, judged=judged)
        return replace(request, decode_budget=budget, least_budget=None if least is None else min(least, budget))

    def with_budget(
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
