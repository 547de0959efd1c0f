"""The least that the cloud has to decode if lengths and times are known beforehand: a bound for every policy."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdd_core.planner.rules import RATIOS
from pdd_lab.simulator.outcomes import (
    CLOUD_ONLY,
    DEVICE_ONLY,
    HANDOFF,
    Choices,
    Requests,
    least_tokens,
    outcomes,
    reading_s,
    rhythm_s,
)

if TYPE_CHECKING:
    from pdd_lab.simulator.cloud_times import CloudTimes
    from pdd_lab.simulator.scenario import Scenario, Truth


def oracle(scenario: Scenario, truth: Truth, times: CloudTimes) -> Choices:
    """Return what asks least of the cloud for each request, if its length and all times are known beforehand.

    No answer stalls, and the device alone makes those that it begins within the target or before the cloud would,
    unless answers must begin in the cloud. No policy with these rules and these `times` asks for fewer tokens, at
    the shares of the prompt that the planner may choose among; the quality of experience is not looked at. Of
    shares that ask for equally many tokens it takes the largest.
    """
    trace, goals = scenario.trace, scenario.goals
    world = times.world(scenario, truth)
    prompts, outputs = trace.prompt_tokens.astype(np.float64), trace.output_tokens.astype(np.float64)
    requests = Requests(prompt_tokens=prompts, output_tokens=outputs)
    step, ttft = 1.0 / truth.decode_tps, np.asarray(world.ttft_s)
    fits = prompts + outputs <= scenario.device.n_ctx
    alone = reading_s(prompts, truth.prefill_tps, ratio=1.0, ttft_s=0.0) + step
    on_device = fits & (alone <= np.maximum(goals.ttft_s, ttft)) & (not goals.must_begin_in_cloud)
    verdict = np.where(on_device, DEVICE_ONLY, CLOUD_ONLY)
    least, budget, kept = np.where(on_device, 0.0, outputs), np.zeros(len(trace)), np.ones(len(trace))
    rhythm, per_token = rhythm_s(world), 1.0 / truth.prefill_tps
    for ratio in _shares(scenario):
        reading = reading_s(prompts, truth.prefill_tps, ratio=ratio, ttft_s=ttft)
        needed = least_tokens((reading + np.minimum(step, rhythm) - ttft, rhythm - per_token))
        tried = outcomes(requests, world, verdict=HANDOFF, decode_budget=needed, refine_ratio=ratio)
        better = fits & ~tried.stalled & (tried.cloud_decode_tokens < least)
        verdict, kept = np.where(better, HANDOFF, verdict), np.where(better, ratio, kept)
        least, budget = np.where(better, tried.cloud_decode_tokens, least), np.where(better, needed, budget)
    return Choices(verdict.astype(np.int8), budget.astype(np.int64), kept)


def _shares(scenario: Scenario) -> tuple[float, ...]:
    """Return the shares of the prompt that the planner may choose among, the largest first."""
    if scenario.refine_ratio is not None:
        return (scenario.refine_ratio,)
    return (1.0, *(ratio for ratio in RATIOS if ratio >= scenario.goals.lowest_ratio))
