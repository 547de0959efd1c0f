"""What the planner is good for on lengths like those of conversations: the figures that the docs promise."""

from __future__ import annotations

import numpy as np
import pytest

from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice, RatePoint
from pdd_core.planner.types import Goals
from pdd_lab.simulator.choices import fixed, oracle, planner
from pdd_lab.simulator.cloud_times import cloud_times
from pdd_lab.simulator.evaluation import best_fixed, evaluate
from pdd_lab.simulator.trace_scenario import Scenario, true_speeds
from pdd_lab.traces import Trace

CLOUD = MeasuredCloud(
    name="c", model="m", base_s=0.004, per_prefill_token_s=2.3e-5, per_sequence_s=2.3e-5, per_context_token_s=3e-8,
    kv_tokens=900_000, max_num_seqs=512, max_num_batched_tokens=1024, rtt_s=0.05, jitter_s=0.0,
)  # fmt: skip
REQUESTS = 4000
# as in Azure's public trace of conversations, 2023: rounded percentiles, straight lines between them
PERCENTILES = (0, 1, 5, 10, 25, 50, 75, 90, 95, 99, 100)
PROMPTS = (5, 30, 180, 205, 400, 1020, 1190, 2730, 4080, 4140, 6000)
ANSWERS = (5, 16, 40, 55, 85, 130, 395, 425, 450, 600, 1000)


def conversations():
    draw = np.random.default_rng(11)

    def lengths(points):
        return np.interp(100 * draw.random(REQUESTS), PERCENTILES, points).astype(np.int64)

    return Trace("c", np.cumsum(draw.exponential(0.2, REQUESTS)), lengths(PROMPTS), lengths(ANSWERS))


def scenario_of(*, decode=40.0, rate=20.0, spread=0.0, jitter=0.0, prefill=1000.0, **goals):
    device = MeasuredDevice(
        name="d", model="m", prefill_tps=(RatePoint(at=0, value=prefill),),
        decode_tps=(RatePoint(at=0, value=decode),), spread=spread, n_ctx=32_768,
    )  # fmt: skip
    cloud = CLOUD.model_copy(update={"jitter_s": jitter})
    return Scenario(
        trace=conversations(), device=device, cloud=cloud, rate=rate, goals=Goals(**goals), max_tokens=1024
    )


def planned(scenario):
    """Return the planner's evaluation, and the cloud's usual times."""
    usual = cloud_times(scenario, fixed(scenario, 64))
    return evaluate(scenario, true_speeds(scenario), planner(scenario, usual)), usual


def times_fewer(made):
    return conversations().output_tokens.sum() / made.decode_tokens


@pytest.mark.parametrize("must", [False, True])
def test_exact_speeds_nine_times_fewer_tokens_nobody_waits_and_five_percent_from_the_bound(must):
    scenario = scenario_of(must_begin_in_cloud=must)
    made, _ = planned(scenario)
    truth = true_speeds(scenario)
    bound = evaluate(scenario, truth, oracle(scenario, truth, made.times), made.times)
    assert times_fewer(made) >= 9
    assert made.stalled_share == bound.stalled_share == 0
    assert bound.decode_tokens <= made.decode_tokens <= 1.05 * bound.decode_tokens


def test_speeds_that_differ_by_a_fifth_and_jitter_of_50_ms_seven_times_fewer_within_the_limit():
    scenario = scenario_of(spread=0.2, jitter=0.05)
    made, usual = planned(scenario)
    assert times_fewer(made) >= 7
    assert made.stalled_share <= 0.01
    best = best_fixed(scenario, true_speeds(scenario), usual)
    assert best.keeps_stall_limit
    assert best.decode_tokens > made.decode_tokens


@pytest.mark.parametrize("rate", [25.0, 50.0, 1000.0])
def test_a_rate_that_devices_cannot_hold_keeps_the_limit_whatever_the_quality(rate):
    made, _ = planned(scenario_of(decode=20.0, rate=rate, spread=0.1, prefill=300.0, qoe=0.0))
    assert made.stalled_share <= 0.01
    assert times_fewer(made) > 2
