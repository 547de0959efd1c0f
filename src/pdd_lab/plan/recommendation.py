"""The settings file: what was planned, as `pdd-device serve` and the plugin load it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_core.planner.plan_file import PlanFile, PlannedSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pdd_lab.simulator.evaluation import Evaluation
    from pdd_lab.simulator.scenario import Scenario

_PLANS: dict[str, Any] = {"planner": "auto", "oracle": "auto", "plain": "cloud"}


def recommendation(scenario: Scenario, made: Mapping[str, Evaluation], policy: str) -> PlanFile:
    """Return the settings that make `policy` happen, with what was learnt on the way.

    Clients that name no budget get the best fixed one from the plugin.
    """
    goals, lengths = scenario.goals, made["planner"].lengths
    fixed = policy not in _PLANS
    ratio = scenario.refine_ratio
    return PlanFile(
        settings=PlannedSettings(
            plan=_PLANS.get(policy, "handoff"),
            decode_budget=_budget(made[policy]) if fixed else "auto",
            stall_probability=goals.stall_probability,
            ttft_target_s=goals.ttft_s,
            must_begin_in_cloud=goals.must_begin_in_cloud,
            rate=scenario.rate,
            refine="auto" if ratio is None else "off" if ratio >= 1 else ratio,
            n_ctx=scenario.device.n_ctx,
        ),
        device=scenario.device,
        cloud=scenario.cloud,
        lengths=None if lengths is None else lengths.as_json(),
        plugin={"default_decode_budget": _budget(made["best_fixed"])},
    )


def _budget(one: Evaluation) -> int:
    return int(one.choices.decode_budget.max())
