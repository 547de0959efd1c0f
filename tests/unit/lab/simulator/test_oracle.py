"""The oracle against a search through everything that a policy could do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice, RatePoint
from pdd_core.planner.rules import RATIOS
from pdd_core.planner.types import Goals
from pdd_lab.simulator.choices import oracle
from pdd_lab.simulator.cloud_times import CloudTimes
from pdd_lab.simulator.evaluation import compare
from pdd_lab.simulator.instance import simulate
from pdd_lab.simulator.offered_load import Load
from pdd_lab.simulator.outcomes import DEVICE_ONLY, HANDOFF, Requests, outcomes
from pdd_lab.simulator.trace_scenario import Scenario, Truth
from pdd_lab.traces import Trace, synthesise

CLOUD = MeasuredCloud(
    name="c", model="m", base_s=0.004, per_prefill_token_s=2.3e-5, per_sequence_s=2.3e-5, per_context_token_s=3e-8,
    kv_tokens=900_000, max_num_seqs=512, max_num_batched_tokens=1024, rtt_s=0.04, jitter_s=0.0,
)  # fmt: skip
SERVED = simulate(Load.at_once(requests=1, prompt=1, output=1), CLOUD)


def scenario_of(trace, *, prefill=1000.0, decode=40.0, n_ctx=32_768, **changes):
    device = MeasuredDevice(
        name="d", model="m", prefill_tps=(RatePoint(at=0, value=prefill),),
        decode_tps=(RatePoint(at=0, value=decode),), spread=0.0, n_ctx=n_ctx,
    )  # fmt: skip
    return Scenario(trace=trace, device=device, cloud=CLOUD, **{"rate": 20.0, **changes})


def least_by_search(scenario, truth, times, index):
    """Return the fewest cloud tokens of one request without a stall, over all verdicts, budgets and shares."""
    prompt, output = int(scenario.trace.prompt_tokens[index]), int(scenario.trace.output_tokens[index])
    if prompt + output > scenario.device.n_ctx:
        return output
    world = times.world(scenario, truth)
    requests = Requests(prompt_tokens=scenario.trace.prompt_tokens, output_tokens=scenario.trace.output_tokens)
    alone = outcomes(requests, world, verdict=DEVICE_ONLY, decode_budget=1).ttft_s[index]
    in_time = alone <= max(scenario.goals.ttft_s, world.ttft_s[index])
    if in_time and not scenario.goals.must_begin_in_cloud:
        return 0
    least, free = output, scenario.refine_ratio is None
    for ratio in (1.0, *RATIOS) if free else (scenario.refine_ratio,):
        for budget in range(1, output + 1):
            made = outcomes(requests, world, verdict=HANDOFF, decode_budget=budget, refine_ratio=ratio)
            if not made.stalled[index]:
                least = min(least, int(made.cloud_decode_tokens[index]))
                break  # more budget never means fewer tokens
    return least


request = st.tuples(
    st.integers(1, 6000),  # prompt
    st.integers(1, 150),  # answer
    st.floats(15, 3000),  # prefill rate
    st.floats(8, 100),  # decode rate
    st.floats(0.0, 0.4),  # round trip
    st.floats(0.01, 3.0),  # cloud's TTFT
    st.floats(0.002, 0.1),  # and TPOT
)


@given(
    st.lists(request, min_size=1, max_size=3),
    st.sampled_from([5.0, 20.0, 60.0]),
    st.sampled_from([1.0, 0.5, None]),
    st.booleans(),
    st.sampled_from([2000, 32_768]),
)
def test_no_policy_without_stalls_asks_less_of_the_cloud(requests, rate, ratio, must, n_ctx):
    prompts, answers, prefill, decode, rtt, ttft, tpot = (
        np.array(column) for column in zip(*requests, strict=True)
    )
    trace = Trace("t", np.zeros(len(requests)), prompts, answers)
    goals = Goals(must_begin_in_cloud=must)
    scenario = scenario_of(trace, rate=rate, refine_ratio=ratio, goals=goals, n_ctx=n_ctx, max_tokens=150)
    truth, times = Truth(prefill, decode, rtt), CloudTimes(ttft, tpot, float(np.median(tpot)), SERVED)
    choices = oracle(scenario, truth, times)
    made = outcomes(
        Requests(prompt_tokens=prompts, output_tokens=answers),
        times.world(scenario, truth),
        verdict=choices.verdict,
        decode_budget=choices.decode_budget,
        refine_ratio=choices.refine_ratio,
    )
    assert not made.stalled.any()
    for index in range(len(requests)):
        assert made.cloud_decode_tokens[index] == least_by_search(scenario, truth, times, index)


@pytest.mark.parametrize("must", [False, True])
@pytest.mark.parametrize("ratio", [1.0, None])
def test_the_planner_with_exact_speeds_never_beats_it(must, ratio):
    chat = synthesise("chat", requests=800)
    made = compare(scenario_of(chat, refine_ratio=ratio, goals=Goals(must_begin_in_cloud=must)), budgets=())
    best, planned = made["oracle"].outcomes, made["planner"].outcomes
    assert not planned.stalled.any()
    assert not best.stalled.any()
    assert np.all(best.cloud_decode_tokens <= planned.cloud_decode_tokens)
