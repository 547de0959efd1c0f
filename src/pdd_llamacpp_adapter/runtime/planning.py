"""Who makes each answer of one device: asks hook ``pdd_plan``, unless the settings leave no choice."""

from __future__ import annotations

import copy
import logging
import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from pdd_core.planner.cost import KV_TOKENS, PREFILL_WEIGHT, byte_weight, prefill_weight
from pdd_core.planner.plan_file import PlanFile
from pdd_core.planner.planner import Planner
from pdd_core.planner.types import Estimate, Goals, Plan, PlanRequest, Verdict, Why
from pdd_llamacpp_adapter.engine.sharing import Sharing
from pdd_llamacpp_adapter.runtime.learning import LOOK_AFTER, Learning
from pdd_llamacpp_adapter.runtime.occupancy import beside
from pdd_llamacpp_adapter.session.outcome import AnswerPlan
from pdd_llamacpp_adapter.session.pacing import load_policies

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_core.env import ServeSettings
    from pdd_core.handoff import CloudInfo
    from pdd_core.planner.types import CloudState, DeviceState
    from pdd_llamacpp_adapter.engine.speed import WorkLeft
    from pdd_llamacpp_adapter.request import AnswerRequest

_AT_ONCE = Estimate(0.0)
_FAST = Estimate(1e9 / 8)
"""A link in bytes per second: 1 Gbit/s."""
logger = logging.getLogger(__name__)
_FIXED = {"handoff": Verdict.HANDOFF, "cloud": Verdict.CLOUD_ONLY, "device": Verdict.DEVICE_ONLY}


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """What is known at the moment that an answer is asked for, besides the request."""

    has_cloud: bool
    """There is a cloud that may be asked."""
    info: CloudInfo | None
    """What the cloud told about itself; None before it did."""
    held: int
    """Tokens of the prompt that the device has processed already."""
    held_whole: int
    """Those of `held` that it has processed as they are, and not in the form of a refined prompt."""
    kv_cell_bytes: int | None = None
    """Bytes of one cell of the cloud's KV cache; None where none are to be had, or the device cannot use them."""
    paced: bool = True
    """False for a client that waits for all of the answer."""
    group: str = ""
    """Answers of one group are alike, such as those of one app: for the planner, how long they get."""
    busy: Sequence[WorkLeft] = ()
    """What the device has to do for other answers."""
    sharing: Sharing = field(default_factory=lambda: Sharing(1))
    """How many answers the device makes at the same time, and how much they slow each other down."""


class Planning:
    """Plans the answers of one device and its cloud. Belongs to one event loop.

    Raises:
        ConfigurationError: the settings name a plan file that cannot be used, or an unknown pacing.
        PolicyError: the policies are strict, and an installed one cannot be loaded.
    """

    def __init__(self, settings: ServeSettings, *, n_ctx: int) -> None:
        self._settings = settings
        plan = PlanFile() if settings.plan_file is None else PlanFile.load(settings.plan_file)
        if plan.device is not None and n_ctx < plan.device.n_ctx:
            logger.warning(
                "the plan is for a device with a context of %d tokens, this one has %d (n_ctx)",
                plan.device.n_ctx, n_ctx,
            )  # fmt: skip
        self.learning = Learning(settings, plan, n_ctx=n_ctx)
        goals = Goals(
            stall_probability=settings.stall_probability,
            ttft_s=settings.ttft_target_s,
            must_begin_in_cloud=settings.must_begin_in_cloud,
        )
        weight = PREFILL_WEIGHT if plan.cloud is None else prefill_weight(plan.cloud)
        kv_tokens = settings.gpu_kv_tokens or (KV_TOKENS if plan.cloud is None else plan.cloud.kv_tokens)
        planner = Planner(
            self.learning.lengths,
            goals,
            prefill_weight=weight,
            byte_weight=byte_weight(settings.kv_price_per_gb, settings.gpu_hour_price, kv_tokens),
        )
        self.policies = load_policies(settings.pacing, planner=planner)

    def by(self, settings: ServeSettings) -> Planning:
        """Return planning with the same knowledge and policies, by other settings of who makes an answer."""
        made = copy.copy(self)
        made._settings = settings
        return made

    @property
    def asks(self) -> bool:
        """Whether the hook is asked; else the settings leave no choice."""
        return self._settings.decode_budget == "auto" and self._settings.plan in ("auto", "handoff")

    def plan(
        self, request: AnswerRequest, facts: Facts, *, rate: float, refinable: bool, hand_over: bool
    ) -> AnswerPlan:
        """Return the plan of an answer for which there is a cloud.

        That is the settings', or else the hook's.

        Args:
            request: where it names the share of its prompt to read, this is kept.
            facts: what is known now.
            rate: tokens per second to show at most.
            refinable: whether the share of the prompt to read may be chosen.
            hand_over: whether to plan a handoff, whatever the settings.

        Raises:
            PolicyError: the policies are strict, and one failed.
        """
        if not self.asks:
            return self._settled(request.refine_ratio)
        prompt, info = len(request.prompt_token_ids), facts.info
        device = self.learning.device.state(prompt, facts.held)
        device = beside(device, facts.busy, facts.sharing, self._expected_length)
        asked = PlanRequest(
            num_prompt_tokens=prompt,
            num_held_tokens=facts.held,
            num_held_whole_tokens=facts.held_whole,
            max_tokens=request.max_tokens,
            rate=rate,
            group=facts.group,
            refine_ratio=request.refine_ratio,
            refinable=refinable,
            verdict=Verdict.HANDOFF if hand_over else _FIXED.get(self._settings.plan),
            kv_cell_bytes=facts.kv_cell_bytes,
            kv_always=self._settings.kv == "always",
            kv_metered=self._settings.kv_metered,
        )
        cloud = self.learning.cloud("" if info is None else info.model).state(
            prompt,
            refines=info is not None and info.refinement != "off",
            max_model_len=None if info is None else info.max_model_len,
            kv=facts.kv_cell_bytes is not None,
        )
        chosen = self._asked(asked, device, cloud)
        plan = chosen.plan
        if facts.kv_cell_bytes is not None and not plan.kv and self._link_unseen():
            chosen = self._with_cells_if_the_link_is_fast(chosen, asked, device, cloud)
            if chosen.plan is not plan:
                return chosen
        if self._settings.plan != "auto":
            return chosen
        if plan.verdict is Verdict.CLOUD_ONLY and self._device_unseen(prompt, request):
            why = replace(plan.why, reason=f"to see how fast the device is now; else {plan.verdict.value}")
            return replace(chosen, plan=Plan(Verdict.HANDOFF, request.max_tokens, why=why))
        if plan.verdict is Verdict.DEVICE_ONLY and self.learning.answers_without_cloud >= LOOK_AFTER:
            return self._unless_the_cloud_is_fast(chosen, asked, device, cloud)
        return chosen

    def _settled(self, ratio: float | None) -> AnswerPlan:
        """Return the plan that the settings leave no choice about; `ratio` is the share of the prompt to read."""
        settings = self._settings
        name = "plan" if settings.decode_budget == "auto" else "decode_budget"
        verdict = _FIXED.get(settings.plan, Verdict.HANDOFF) if name == "plan" else Verdict.HANDOFF
        return AnswerPlan(Plan(verdict, None, ratio, Why(f"{name} is {getattr(settings, name)}")), "settings")

    def _asked(self, request: PlanRequest, device: DeviceState, cloud: CloudState) -> AnswerPlan:
        plan, by = self.policies.first_result("pdd_plan", _is_plan, request=request, device=device, cloud=cloud)
        return AnswerPlan(plan, by)

    def _unless_the_cloud_is_fast(
        self, chosen: AnswerPlan, request: PlanRequest, device: DeviceState, cloud: CloudState
    ) -> AnswerPlan:
        """Return `chosen`, the device alone, unless a cloud with a first token at once would be asked: then that.

        A cloud that was found too slow would else never be found fast again.
        """
        fast = self._asked(request, device, replace(cloud, ttft_s=_AT_ONCE, rtt_s=_AT_ONCE))
        if fast.plan.verdict is Verdict.DEVICE_ONLY:
            return chosen
        reason = f"to see how fast the cloud is now; else {chosen.plan.verdict.value}"
        return replace(fast, plan=replace(fast.plan, why=replace(fast.plan.why, reason=reason)))

    def _with_cells_if_the_link_is_fast(
        self, chosen: AnswerPlan, request: PlanRequest, device: DeviceState, cloud: CloudState
    ) -> AnswerPlan:
        """Return `chosen`, or with cells where a fast link would be worth using: nobody waits for them.

        A link that was never used, or was found too slow, would else never be found fast.
        """
        plan = chosen.plan
        if (
            plan.verdict is Verdict.DEVICE_ONLY
            or not self._asked(request, device, replace(cloud, link_bps=_FAST)).plan.kv
        ):
            return chosen
        why = replace(
            plan.why, reason=f"to see how fast the link is now; else {plan.verdict.value}, without cells"
        )
        whole = plan.verdict is Verdict.HANDOFF and plan.refine_ratio is None
        budget = plan.decode_budget if whole else request.max_tokens
        return replace(chosen, plan=Plan(Verdict.HANDOFF, budget, why=why, kv=True))

    def _expected_length(self, prompt: int) -> float:
        return self.learning.lengths.table("", prompt).expected(math.inf)[0]

    def _link_unseen(self) -> bool:
        return self.learning.answers_without_cells >= LOOK_AFTER

    def _device_unseen(self, prompt: int, request: AnswerRequest) -> bool:
        """Whether the device should read along once, behind a cloud that is not capped: nobody waits for it.

        A device that was found too slow would else never be found fast again.
        """
        unseen = self.learning.answers_unseen >= LOOK_AFTER
        return unseen and prompt + request.max_tokens <= self.learning.n_ctx


def _is_plan(result: object) -> bool:
    if not isinstance(result, Plan) or result.verdict not in set(Verdict):
        return False
    budget, ratio = result.decode_budget, result.refine_ratio
    known = type(result.kv) is bool and (budget is None or (type(budget) is int and budget >= 1))
    return known and (ratio is None or 0 < ratio <= 1)
