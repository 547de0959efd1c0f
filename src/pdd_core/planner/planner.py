"""The built-in `pdd_plan`: the cheapest plan for the cloud among those that keep the goals."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.hookspecs import hookimpl
from pdd_core.planner.alternatives import Case
from pdd_core.planner.cost import PREFILL_WEIGHT, Weights
from pdd_core.planner.types import Goals, Plan, Verdict, Why

if TYPE_CHECKING:
    from pdd_core.planner.lengths import OutputLengths
    from pdd_core.planner.types import Alternative, CloudState, DeviceState, PlanRequest


class Planner:
    """Decides one request after another. `lengths` may learn meanwhile.

    Args:
        lengths: how long answers get.
        goals: what a plan has to keep to.
        prefill_weight: token-seconds of one token that the cloud prefills; see `pdd_core.planner.cost`.
        byte_weight: token-seconds of one byte of a cell that the cloud sends; see there.
    """

    def __init__(
        self,
        lengths: OutputLengths,
        goals: Goals | None = None,
        *,
        prefill_weight: float = PREFILL_WEIGHT,
        byte_weight: float = 0.0,
    ) -> None:
        self._lengths = lengths
        self._goals = goals or Goals()
        self._weights = Weights(prefill_weight, byte_weight)

    @hookimpl(trylast=True)
    def pdd_plan(self, request: PlanRequest, device: DeviceState, cloud: CloudState) -> Plan:
        """Return the plan; there always is one."""
        table = self._lengths.table(request.group, request.num_prompt_tokens)
        case = Case(request, device, cloud, self._goals, table, self._weights)
        alternatives = [
            alternative for alternative in (case.cloud_only(), case.device_only()) if alternative is not None
        ]
        alternatives += case.handoffs()
        winner = _winner(alternatives, request.verdict) or case.last_resort()
        why = Why(_reason(winner, alternatives), case.inputs(), tuple(alternatives))
        return Plan(winner.verdict, winner.decode_budget, winner.refine_ratio, why, winner.kv)


def _winner(alternatives: list[Alternative], fixed: Verdict | None) -> Alternative | None:
    """Return the cheapest alternative that keeps the goals. A verdict that is fixed comes first, goals or not."""
    wanted = [alternative for alternative in alternatives if alternative.verdict == fixed]
    for group in (wanted, alternatives):
        if good := [alternative for alternative in group if alternative.rejected is None]:
            return min(good, key=_cost)
        if group:
            return group[0]
    return None


def _cost(alternative: Alternative) -> float:
    return alternative.cost


def _reason(winner: Alternative, alternatives: list[Alternative]) -> str:
    if winner.rejected is not None:
        return f"as it was asked for, though: {winner.rejected}" if alternatives else winner.rejected
    if winner.verdict is Verdict.DEVICE_ONLY:
        return "the device alone begins in time, and costs the cloud nothing"
    if winner.kv:
        return (
            f"the cheapest plan that keeps the goals: about {winner.kv_bytes / 1e6:.3g} MB of the cloud's KV cache "
            "take the place of reading"
        )
    if winner.verdict is Verdict.HANDOFF:
        return "the cheapest plan that keeps the goals"
    others = {
        alternative.verdict.value: alternative.rejected
        for alternative in alternatives
        if alternative.rejected is not None
    }
    return "; ".join(f"{verdict}: {why}" for verdict, why in others.items()) or "nothing else can"
