"""How cloud work, stalls and the kept share of prompts trade against each other."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.planner.lengths import OutputLengths
from pdd_lab.simulator.choices import fixed, learnt_planner, planner
from pdd_lab.simulator.cloud_times import CloudTimes, cloud_times
from pdd_lab.simulator.evaluation import outcomes_of
from pdd_lab.simulator.trace_scenario import true_speeds

if TYPE_CHECKING:
    from pdd_lab.simulator.outcomes import Choices
    from pdd_lab.simulator.trace_scenario import Scenario, Truth

STALLS = (0.001, 0.003, 0.01, 0.03, 0.1)
"""Stall probabilities that the planner is given."""
RATIOS = (1.0, 0.75, 0.5, 0.25)
"""Shares of the prompt that devices read."""
BUDGETS = (8, 12, 16, 24, 32, 48, 64, 96, 128)
_MOST = 4000
"""Requests of each point."""


@dataclass(frozen=True, slots=True)
class Point:
    """One setting on the front."""

    policy: str
    """planner or fixed."""
    setting: float
    """The planner's stall probability, or the fixed budget."""
    ratio: float
    decode_tokens: float
    """Cloud tokens per request, means over all requests."""
    cost: float
    """Cloud token-seconds per request."""
    stalled_share: float


def front(scenario: Scenario) -> list[Point]:
    """Return what the planner and fixed budgets reach, for several stall limits, budgets and kept shares."""
    scenario = replace(scenario, trace=scenario.trace.first(_MOST))
    truth, times = true_speeds(scenario), cloud_times(scenario, fixed(scenario, BUDGETS[-1]))
    lengths = OutputLengths()
    planner(scenario, times, lengths)
    points = []
    for ratio in RATIOS:
        kept = replace(scenario, refine_ratio=ratio)
        for stalls in STALLS:
            goals = replace(scenario.goals, stall_probability=stalls)
            choices = learnt_planner(replace(kept, goals=goals), times, lengths)
            points.append(_point("planner", stalls, ratio, kept, truth, times, choices))
        points += [_point("fixed", budget, ratio, kept, truth, times, fixed(kept, budget)) for budget in BUDGETS]
    return points


def _point(
    policy: str,
    setting: float,
    ratio: float,
    scenario: Scenario,
    truth: Truth,
    times: CloudTimes,
    choices: Choices,
) -> Point:
    made = outcomes_of(scenario, truth, times, choices)
    return Point(
        policy,
        setting,
        ratio,
        float(np.mean(made.cloud_decode_tokens)),
        float(np.mean(made.cloud_cost)),
        float(np.mean(made.stalled)),
    )
