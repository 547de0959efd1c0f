"""What the planner decides, and why."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError
from pdd_core.planner.formulas import NUMBERS, Race, break_even, margin, upper_tail
from pdd_core.planner.lengths import OutputLengths
from pdd_core.planner.planner import Planner
from pdd_core.planner.rules import LEAST_REFINED, NEGLIGIBLE
from pdd_core.planner.types import CloudState, DeviceState, Estimate, Goals, PlanRequest, Verdict
from pdd_core.plugins import Policies
from pdd_lab.simulator.outcomes import CLOUD_ONLY, HANDOFF, Requests, World, outcomes
from pdd_lab.simulator.vector_cases import ARRAYS
from pdd_lab.simulator.vector_planner import Circumstances, plan_many


def lengths_of(outputs, prompt=1000, group=""):
    lengths = OutputLengths()
    for output in outputs:
        lengths.observe(group, prompt, int(output))
    return lengths


CHAT = lengths_of(np.random.default_rng(0).lognormal(math.log(150), 0.9, 300).clip(1, 900))
CODE = lengths_of(np.random.default_rng(1).lognormal(math.log(12), 0.9, 300).clip(1, 300))


def plan(
    lengths=CHAT, goals=None, *, prefill=1000.0, prefill_sd=0.0, decode=40.0, n_ctx=16_384, cloud=(), **request
):
    asked = {"num_prompt_tokens": 1000, "max_tokens": 1024, "rate": 20.0, **request}
    seen = {
        "ttft_s": Estimate(0.1),
        "tpot_s": Estimate(0.03),
        "rtt_s": Estimate(0.05),
        "refines": True,
        **dict(cloud),
    }
    device = DeviceState(prefill_tps=Estimate(prefill, prefill_sd), decode_tps=Estimate(decode), n_ctx=n_ctx)
    return Planner(lengths, goals).pdd_plan(PlanRequest(**asked), device, CloudState(**seen))


def test_it_is_the_base_formula_where_nothing_is_uncertain_and_nothing_is_for_free() -> None:
    # no credit for the time of the first token, and no time for the last step: N = r L / (p - r) = 20.4
    made = plan(decode=1e6, cloud={"ttft_s": Estimate(0.0), "rtt_s": Estimate(0.0)})
    assert made.verdict is Verdict.HANDOFF
    assert made.decode_budget == math.ceil(20 * 1000 / (1000 - 20))


def test_the_time_of_the_first_token_is_the_device_s_to_use() -> None:
    # (1000 + N) / 1000 + 1 / 40 = 0.15 + N / 20
    assert plan().decode_budget == math.ceil((1.025 - 0.15) / (1 / 20 - 1 / 1000))


@pytest.mark.parametrize("quantity", ["ttft_s", "tpot_s", "rtt_s", "link_bps"])
@pytest.mark.parametrize("value", [math.exp(-50.0), math.exp(50.0)])  # as far as a `Tracker` goes
def test_a_plan_is_made_whatever_was_learnt_of_the_cloud(quantity, value) -> None:
    made = plan(cloud={"link_bps": Estimate(1e7), quantity: Estimate(value)}, kv_cell_bytes=10_000)
    assert all(math.isfinite(one.cost) for one in made.why.alternatives)


def test_uncertainty_becomes_head_room() -> None:
    budgets = [plan(prefill_sd=sd).decode_budget for sd in (0, 100, 200, 300)]
    assert budgets == sorted(budgets)
    assert budgets[-1] > 1.5 * budgets[0]
    careless = plan(goals=Goals(stall_probability=0.2), prefill_sd=200).decode_budget
    careful = plan(goals=Goals(stall_probability=0.001), prefill_sd=200).decode_budget
    assert careless < budgets[2] < careful
    jittery = plan(cloud={"rtt_s": Estimate(0.05, 0.05), "ttft_s": Estimate(0.1, 0.1)}).decode_budget
    assert jittery > budgets[0]


def test_one_token_more_is_taken_where_it_takes_all_of_the_risk_away() -> None:
    # an exact device, and a first token that comes at 0.10 s give or take 2 ms: (1025 + N) / 1000 = 0.15 + N / 20
    credit = {"ttft_s": Estimate(0.1, 0.002), "rtt_s": Estimate(0.05)}
    for prompt in range(1000, 1049):  # one of them is at a break-even
        made = plan(num_prompt_tokens=prompt, cloud=credit)
        chosen = next(one for one in made.why.alternatives if one.verdict is Verdict.HANDOFF)
        assert chosen.stall_probability <= NEGLIGIBLE
        assert made.decode_budget <= 1 + math.ceil((prompt / 1000 - 0.125) / (1 / 20 - 1 / 1000))


@pytest.mark.parametrize("noise", [0.1, 0.2, 0.4])
def test_as_many_stall_as_were_allowed(noise) -> None:
    generator = np.random.default_rng(5)
    count = 40_000
    prompts = generator.integers(200, 4000, count)
    common = {"decode_tps": 40, "ttft_s": 0.1, "tpot_s": 0.05}
    jitter = 0.05
    given = Circumstances(
        prompt_tokens=prompts,
        max_tokens=4000,
        rate=20,
        prefill_tps=1000,
        prefill_tps_sd=1000 * noise,
        rtt_s=0.15,
        rtt_s_sd=jitter,
        **common,
    )
    lengths = OutputLengths()
    plans = plan_many(
        given,
        lengths.tables(),
        lengths.buckets(prompts),
        goals=Goals(must_begin_in_cloud=True, stall_probability=0.02),
    )
    log_sd = math.sqrt(math.log1p(noise**2))
    speeds = 1000 * generator.lognormal(-(log_sd**2) / 2, log_sd, count)
    rtt = np.maximum(0.01, generator.normal(0.15, jitter, count))
    outputs = np.maximum(1, generator.lognormal(math.log(120), 1.3, count)).astype(int)  # as the prior has them
    world = World(prefill_tps=speeds, rtt_s=rtt, rate=20, **{**common, "ttft_s": 0.1 + rtt})
    result = outcomes(
        Requests(prompt_tokens=prompts, output_tokens=outputs),
        world,
        verdict=plans.verdict,
        decode_budget=plans.decode_budget,
    )
    assert np.mean(plans.verdict == HANDOFF) > 0.5
    assert 0.5 * plans.stall_probability.mean() < result.stalled.mean() < 0.024


@given(
    prompt=st.integers(1, 20_000),
    prefill=st.floats(30, 3000),
    spread=st.floats(0, 0.5),
    must=st.booleans(),
    epsilon=st.floats(0.001, 0.2),
)
def test_a_handoff_keeps_the_stall_probability_with_the_least_budget(
    prompt, prefill, spread, must, epsilon
) -> None:
    goals = Goals(stall_probability=epsilon, must_begin_in_cloud=must)
    made = plan(goals=goals, num_prompt_tokens=prompt, prefill=prefill, prefill_sd=spread * prefill, n_ctx=50_000)
    if made.verdict is not Verdict.HANDOFF:
        return
    chosen = next(one for one in made.why.alternatives if one.verdict is Verdict.HANDOFF)
    assert chosen.stall_probability <= epsilon
    assert chosen.cost <= made.why.alternatives[0].cost
    assert 1 <= made.decode_budget <= 1024


def test_a_device_that_cannot_hold_the_rate_leaves_answers_to_the_cloud() -> None:
    # paced evenly, the whole answer would be as slow as the device, however many tokens the cloud makes
    made = plan(decode=20.0, rate=25.0, prefill=250)
    assert made.verdict is Verdict.CLOUD_ONLY
    assert "quality of experience" in made.why.reason
    assert plan(decode=20.0, rate=25.0, prefill=250, goals=Goals(qoe=0.8)).verdict is Verdict.HANDOFF
    assert plan(decode=24.5, rate=25.0, prefill=250).verdict is Verdict.HANDOFF


def test_answers_that_end_before_the_handoff_pays_stay_in_the_cloud() -> None:
    long_prompt = plan(CODE, num_prompt_tokens=1000, prefill=250)
    assert long_prompt.verdict is Verdict.CLOUD_ONLY
    assert long_prompt.decode_budget is None
    assert "saves only" in long_prompt.why.reason
    assert plan(CHAT, num_prompt_tokens=1000, prefill=250).verdict is Verdict.HANDOFF


def test_the_device_alone_where_it_begins_in_time() -> None:
    assert plan(num_prompt_tokens=300).verdict is Verdict.DEVICE_ONLY
    assert plan(num_prompt_tokens=700).verdict is Verdict.HANDOFF
    # the rest of the chat is in its context already
    assert plan(num_prompt_tokens=3000, num_held_tokens=2800).verdict is Verdict.DEVICE_ONLY
    assert plan(num_prompt_tokens=700, goals=Goals(ttft_s=1.0)).verdict is Verdict.DEVICE_ONLY
    # 0.4 s, but nobody knows for sure
    assert plan(num_prompt_tokens=400, prefill_sd=10).verdict is Verdict.DEVICE_ONLY
    assert plan(num_prompt_tokens=400, prefill_sd=300).verdict is Verdict.HANDOFF
    # where the cloud itself takes longer, the device begins sooner than plain serving would
    assert plan(num_prompt_tokens=700, cloud={"ttft_s": Estimate(3.0)}).verdict is Verdict.DEVICE_ONLY
    # than it usually would: a few very late answers make a high mean
    assert plan(num_prompt_tokens=700, cloud={"ttft_s": Estimate(1.0, 4.0)}).verdict is Verdict.HANDOFF


def test_a_device_alone_cannot_go_on_from_a_refined_history() -> None:
    follow_up = {"num_prompt_tokens": 3000, "num_held_tokens": 2800}
    made = plan(**follow_up, num_held_whole_tokens=100)
    assert made.verdict is Verdict.HANDOFF
    assert made.decode_budget >= LEAST_REFINED, "and a handoff leaves the guard enough to judge that by"
    assert made.decode_budget < plan(num_prompt_tokens=3000).decode_budget
    alone = next(one for one in made.why.alternatives if one.verdict is Verdict.DEVICE_ONLY)
    assert alone.rejected == "begins only after 2.9 s"
    assert made.why.inputs["held_whole_tokens"] == 100
    assert plan(**follow_up, num_held_whole_tokens=2800).verdict is Verdict.DEVICE_ONLY


def test_unless_every_answer_must_begin_in_the_cloud() -> None:
    goals = Goals(must_begin_in_cloud=True)
    made = plan(num_prompt_tokens=300, goals=goals)
    assert made.verdict is Verdict.HANDOFF
    alone = next(one for one in made.why.alternatives if one.verdict is Verdict.DEVICE_ONLY)
    assert alone.rejected == "the answer must begin in the cloud"
    # a cloud that is not there cannot begin
    assert plan(num_prompt_tokens=300, goals=goals, cloud={"available": False}).verdict is Verdict.DEVICE_ONLY


def test_a_device_that_decodes_slower_than_people_read_is_left_out() -> None:
    assert plan(decode=5.0).verdict is Verdict.CLOUD_ONLY
    assert plan(decode=5.0, num_prompt_tokens=200).verdict is Verdict.CLOUD_ONLY
    assert plan(decode=5.0, num_prompt_tokens=200, goals=Goals(qoe=0.3)).verdict is Verdict.DEVICE_ONLY


@pytest.mark.parametrize(("prefill", "prompt"), [(250.0, 5000), (1000.0, 12_000), (40.0, 600)])
def test_refinement_where_it_makes_a_handoff_possible(prefill, prompt) -> None:
    lengths = lengths_of([200] * 100, prompt=prompt)
    whole = plan(lengths, prefill=prefill, num_prompt_tokens=prompt)
    refined = plan(lengths, prefill=prefill, num_prompt_tokens=prompt, refinable=True)
    assert whole.verdict is Verdict.CLOUD_ONLY
    assert refined.verdict is Verdict.HANDOFF
    assert refined.refine_ratio is not None
    assert 5 <= refined.decode_budget < 200
    # not below what was allowed, and not where the cloud refines nothing
    kept = plan(lengths, prefill=prefill, num_prompt_tokens=prompt, refinable=True, goals=Goals(lowest_ratio=0.9))
    assert kept.refine_ratio is None
    unable = {"refines": False}
    assert (
        plan(lengths, prefill=prefill, num_prompt_tokens=prompt, refinable=True, cloud=unable).refine_ratio is None
    )


def test_no_token_is_left_out_without_need() -> None:
    assert plan(num_prompt_tokens=1500, refinable=True).refine_ratio is None


def test_a_device_that_nobody_knows_gets_its_chance_behind_a_cloud_that_is_not_capped() -> None:
    # no budget below max_tokens keeps the stall probability; without a cap nobody waits
    made = plan(lengths_of([60] * 100), num_prompt_tokens=600, max_tokens=60, prefill=1500, prefill_sd=3000)
    assert (made.verdict, made.decode_budget) == (Verdict.HANDOFF, 60)
    chosen = next(one for one in made.why.alternatives if one.verdict is Verdict.HANDOFF)
    assert chosen.stall_probability == 0
    assert chosen.saved > 0.1


def test_a_share_that_is_fixed_is_kept() -> None:
    made = plan(num_prompt_tokens=3000, refine_ratio=0.4)
    assert (made.verdict, made.refine_ratio) == (Verdict.HANDOFF, 0.4)
    assert made.decode_budget < plan(num_prompt_tokens=3000).decode_budget


@pytest.mark.parametrize("verdict", list(Verdict))
def test_a_verdict_that_is_fixed_is_kept(verdict) -> None:
    for request in ({"num_prompt_tokens": 100}, {"num_prompt_tokens": 6000}, {"max_tokens": 2}):
        assert plan(verdict=verdict, **request).verdict is verdict
    hopeless = plan(verdict=Verdict.HANDOFF, prefill=15.0)
    # so much that hardly any answer gets there
    assert CHAT.table("", 1000).longer_than(hopeless.decode_budget) <= 0.01
    assert hopeless.why.reason == "as it was asked for, though: never ready in time"
    assert plan(verdict=Verdict.HANDOFF, max_tokens=1).decode_budget == 1


def test_what_does_not_fit() -> None:
    assert plan(n_ctx=1500).verdict is Verdict.CLOUD_ONLY
    assert plan(n_ctx=1500, refine_ratio=0.3).verdict is Verdict.HANDOFF
    assert plan(cloud={"max_model_len": 1500}).verdict is Verdict.DEVICE_ONLY
    assert plan(n_ctx=1500, cloud={"max_model_len": 1500}).why.reason == "prompt and answer fit neither side"


def test_what_may_just_have_fallen_needs_head_room() -> None:
    device = DeviceState(
        prefill_tps=Estimate(1000, 100, doubt=0.5), decode_tps=Estimate(40, doubt=3.0), n_ctx=16_384
    )
    cloud = CloudState(ttft_s=Estimate(0.3, doubt=9.0), tpot_s=Estimate(0.03), rtt_s=Estimate(0.05))
    asked = PlanRequest(num_prompt_tokens=1000, max_tokens=1024, rate=20)
    sure = plan(prefill_sd=100, cloud={"ttft_s": Estimate(0.3)})
    slower = Planner(CHAT).pdd_plan(asked, device, replace(cloud, ttft_s=Estimate(0.3)))
    assert sure.verdict is slower.verdict is Verdict.HANDOFF
    assert slower.decode_budget > 1.5 * sure.decode_budget
    # a first token can come no sooner than at once
    sooner = Planner(CHAT).pdd_plan(asked, device, cloud)
    assert slower.decode_budget < sooner.decode_budget < slower.decode_budget + 20 * 0.3 + 2


def test_a_device_that_is_busy_begins_later() -> None:
    device = DeviceState(
        prefill_tps=Estimate(1000), decode_tps=Estimate(40), n_ctx=16_384, wait_s=Estimate(2.0, 1.0)
    )
    cloud = CloudState(ttft_s=Estimate(0.1), tpot_s=Estimate(0.03), rtt_s=Estimate(0.05))
    made = Planner(CHAT).pdd_plan(PlanRequest(num_prompt_tokens=300, max_tokens=1024, rate=20), device, cloud)
    assert made.verdict is Verdict.HANDOFF
    assert made.decode_budget > 20 * 2.0


def test_it_says_what_it_knew_what_else_there_was_and_why() -> None:
    made = plan(rate=math.inf)
    told = json.loads(json.dumps(made.why.as_json(), allow_nan=False))
    assert told["reason"] == "the cheapest plan that keeps the goals"
    assert told["inputs"]["prompt_tokens"] == 1000
    assert told["inputs"]["rate"] is None
    verdicts = [one["verdict"] for one in told["alternatives"]]
    assert verdicts == ["cloud only", "device only", "handoff"]
    assert told["alternatives"][1]["rejected"] == "begins only after 1 s"
    costs = [one["cost"] for one in told["alternatives"]]
    assert costs[0] > costs[2] > costs[1] == 0


def test_it_is_asked_last(monkeypatch) -> None:
    from pdd_core.hookspecs import hookimpl
    from pdd_core.planner.types import Plan

    class Mine:
        @hookimpl
        def pdd_plan(self, request):
            return Plan(Verdict.CLOUD_ONLY) if request.group == "mine" else None

    policies = Policies({"planner": Planner(CHAT), "mine": Mine()}, allow=())
    device = DeviceState(prefill_tps=Estimate(1000), decode_tps=Estimate(40), n_ctx=16_384)
    cloud = CloudState(ttft_s=Estimate(0.1), tpot_s=Estimate(0.03), rtt_s=Estimate(0.05))
    for group, expected in (("mine", "mine"), ("", "planner")):
        request = PlanRequest(num_prompt_tokens=800, max_tokens=100, rate=20, group=group)
        _, name = policies.first_result("pdd_plan", lambda _: True, request=request, device=device, cloud=cloud)
        assert name == expected


@pytest.mark.parametrize(
    "goals",
    [
        {"stall_probability": 0},
        {"stall_probability": 1},
        {"ttft_s": 0},
        {"qoe": 1.1},
        {"lowest_ratio": 0},
        {"qoe": math.nan},
    ],
)
def test_goals_that_cannot_be_are_refused(goals) -> None:
    with pytest.raises(ConfigurationError, match=next(iter(goals))):
        Goals(**goals)


@given(z=st.floats(-9, 9))
def test_numbers_and_arrays_are_computed_alike(z) -> None:
    assert upper_tail(ARRAYS, np.array([z]))[0] == pytest.approx(upper_tail(NUMBERS, z), rel=1e-12, abs=1e-30)


@given(st.integers(1, 8000), st.floats(30, 4000), st.floats(-1, 3), st.floats(0.01, 0.5), st.floats(0.001, 0.5))
def test_at_the_break_even_half_of_the_devices_are_ready(work, prefill, credit, gap, sigma) -> None:
    race = Race(work=work, credit=credit, credit_sd=0.0, gap=gap, per_token=1 / prefill, sigma=sigma)
    least = break_even(NUMBERS, race)
    if math.isinf(least):
        assert gap <= race.per_token + 1e-9
        assert margin(NUMBERS, race, 1) < 1e-6
        return
    assert margin(NUMBERS, race, least) >= -1e-6
    if least > 1:
        assert margin(NUMBERS, race, least - 1) <= 1e-6


def trace(seed, median, spread, prompts):
    """A synthetic trace: lengths of prompts and of answers."""
    generator = np.random.default_rng(seed)
    prompt = generator.lognormal(math.log(prompts), 0.9, 6000).clip(3, 8000).astype(int)
    output = generator.lognormal(math.log(median), spread, 6000).clip(1, 1000).astype(int)
    return prompt, output


@pytest.mark.parametrize(("median", "spread", "prompts"), [(130, 0.9, 1000), (13, 1.0, 1500)])
def test_close_to_an_oracle_that_knows_every_length(median, spread, prompts) -> None:
    prompt, output = trace(1, median, spread, prompts)
    lengths = OutputLengths()
    for one, answer in zip(*(column.tolist() for column in trace(2, median, spread, prompts)), strict=True):
        lengths.observe("", one, answer)
    common = {"decode_tps": 40, "tpot_s": 0.03, "rtt_s": 0.05}
    given = Circumstances(prompt_tokens=prompt, max_tokens=2000, rate=20, prefill_tps=1000, ttft_s=0.1, **common)
    plans = plan_many(given, lengths.tables(), lengths.buckets(prompt), goals=Goals(must_begin_in_cloud=True))
    world = World(prefill_tps=1000, ttft_s=0.15, rate=20, **common)
    requests = Requests(prompt_tokens=prompt, output_tokens=output)
    planned = outcomes(requests, world, verdict=plans.verdict, decode_budget=plans.decode_budget)
    plain = outcomes(requests, world, verdict=CLOUD_ONLY, decode_budget=0)
    least = np.maximum(1, np.ceil((prompt / 1000 + 1 / 40 - 0.15) / (1 / 20 - 1 / 1000)))
    oracle = np.minimum(output, least).sum()
    assert planned.stalled.sum() == 0
    assert oracle <= planned.cloud_decode_tokens.sum() <= 1.05 * oracle
    # never more work for the cloud than plain serving, and nobody waits longer
    assert np.all(planned.cloud_cost <= plain.cloud_cost)
    assert np.all(planned.ttft_s <= plain.ttft_s)
    assert np.all(planned.qoe >= plain.qoe - 1e-9)
