from dataclasses import replace

import numpy as np
import pytest

from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice, RatePoint
from pdd_core.planner.types import Goals
from pdd_lab.simulator.choices import fixed, plain, planner
from pdd_lab.simulator.cloud_times import cloud_times, part_of
from pdd_lab.simulator.evaluation import ceiling, compare, evaluate
from pdd_lab.simulator.front import RATIOS, front
from pdd_lab.simulator.offered_load import Load
from pdd_lab.simulator.outcomes import CLOUD_ONLY, DEVICE_ONLY, HANDOFF
from pdd_lab.simulator.trace_scenario import Scenario, expected_speeds, reading_seconds, true_speeds
from pdd_lab.traces import Trace, synthesise

CLOUD = MeasuredCloud(
    name="c", model="m", base_s=0.004, per_prefill_token_s=2.3e-5, per_sequence_s=2.3e-5, per_context_token_s=3e-8,
    kv_tokens=900_000, max_num_seqs=512, max_num_batched_tokens=1024, rtt_s=0.04, jitter_s=0.0,
)  # fmt: skip


def scenario(trace=None, *, prefill=1000.0, decode=40.0, spread=0.0, n_ctx=32768, **changes):
    device = MeasuredDevice(
        name="d", model="m", prefill_tps=(RatePoint(at=0, value=prefill),),
        decode_tps=(RatePoint(at=0, value=decode),), spread=spread, n_ctx=n_ctx,
    )  # fmt: skip
    return Scenario(**{"trace": trace or synthesise("chat", requests=1200), "device": device, "cloud": CLOUD,
                       "rate": 20.0} | changes)  # fmt: skip


@pytest.fixture(scope="module")
def exact():
    return compare(scenario(goals=Goals(must_begin_in_cloud=True)), budgets=(8, 64))


def test_the_policies_are_those_of_the_contract(exact):
    assert list(exact) == ["planner", "best_fixed", "fixed_8", "fixed_64", "oracle", "plain"]


def test_plain_serving_is_what_all_are_measured_by(exact):
    plain = exact["plain"]
    assert plain.decode_tokens == synthesise("chat", requests=1200).output_tokens.sum()
    assert (plain.share(CLOUD_ONLY), plain.stalled_share) == (1.0, 0.0)
    assert np.isnan(plain.kept_share)


def test_with_exact_speeds_the_planner_stalls_nobody_and_comes_close_to_the_oracle(exact):
    planned, best = exact["planner"], exact["oracle"]
    assert planned.stalled_share == best.stalled_share == 0.0
    assert best.decode_tokens <= planned.decode_tokens <= 1.05 * best.decode_tokens


def test_the_planner_beats_the_best_fixed_budget_under_the_same_limit(exact):
    assert exact["best_fixed"].stalled_share <= 0.01
    assert exact["planner"].decode_tokens < exact["best_fixed"].decode_tokens


def test_no_policy_asks_the_cloud_for_more_than_plain_serving_does(exact):
    for one in exact.values():
        assert one.decode_tokens <= exact["plain"].decode_tokens
        assert one.prefill_tokens <= exact["plain"].prefill_tokens
        assert one.ttft_s[1] <= exact["plain"].ttft_s[1] + 1e-9


def test_a_device_alone_takes_prompts_off_the_cloud_unless_answers_must_begin_there(exact):
    made = compare(scenario(), budgets=())
    assert made["planner"].share(DEVICE_ONLY) > 0.2
    assert made["planner"].prefill_tokens < made["plain"].prefill_tokens
    assert exact["planner"].share(DEVICE_ONLY) == 0.0


def test_uncertain_speeds_cost_tokens_and_keep_the_limit(exact):
    goals = Goals(must_begin_in_cloud=True)
    noisy = compare(scenario(spread=0.2, goals=goals), budgets=())["planner"]
    assert 0 < noisy.stalled_share <= 0.015
    assert noisy.decode_tokens > exact["planner"].decode_tokens


@pytest.mark.parametrize("rate", [25.0, 1000.0])
def test_a_rate_above_the_devices_own_keeps_the_limit_of_stalls_and_the_quality(rate):
    made = compare(scenario(prefill=80.0, decode=20.0, spread=0.1, rate=rate), budgets=())
    assert made["planner"].stalled_share <= 0.01
    assert made["planner"].qoe >= min(0.95, made["plain"].qoe) - 0.01


def test_a_slow_device_is_given_part_of_the_prompt_where_it_may():
    whole = compare(scenario(prefill=80.0), budgets=())["planner"]
    refined = compare(scenario(prefill=80.0, refine_ratio=None), budgets=())["planner"]
    assert refined.kept_share < 0.6
    assert refined.share(HANDOFF) > whole.share(HANDOFF)
    assert refined.decode_tokens < whole.decode_tokens


def test_a_prompt_that_does_not_fit_the_device_stays_in_the_cloud():
    made = compare(scenario(n_ctx=16), budgets=(8,))
    for one in made.values():
        assert one.decode_tokens == made["plain"].decode_tokens
        assert not one.outcomes.handed_off.any()


def test_requests_that_the_cloud_cannot_hold_count_as_refused_and_nowhere_else():
    small = scenario(cloud=CLOUD.model_copy(update={"kv_tokens": 1008}), goals=Goals(must_begin_in_cloud=True))
    made = compare(small, budgets=(8,))
    trace = small.trace
    too_long = trace.prompt_tokens + trace.output_tokens > 1008
    assert made["plain"].refused == too_long.sum() > 100
    # a budget needs less room: fewer are refused, those that cannot even be begun
    begun = trace.prompt_tokens + np.minimum(trace.output_tokens, 8) <= 1008
    assert made["fixed_8"].refused == (~begun).sum()
    assert made["plain"].decode_tokens == trace.output_tokens[~too_long].sum()
    served = replace(trace, **{name: getattr(trace, name)[~too_long]
                               for name in ("arrival_s", "prompt_tokens", "output_tokens")})  # fmt: skip
    alone = evaluate(replace(small, trace=served), true_speeds(replace(small, trace=served)),
                     plain(replace(small, trace=served)))  # fmt: skip
    assert made["plain"].requests_per_s == pytest.approx(alone.requests_per_s)
    assert made["plain"].ttft_s == pytest.approx(alone.ttft_s)


def test_requests_per_second_are_those_of_the_tokens_that_are_decoded():
    # devices close the cloud long before a large budget is used up
    one = scenario()
    truth = true_speeds(one)
    large, small = (evaluate(one, truth, fixed(one, budget)) for budget in (512, 96))
    assert large.decode_tokens < 1.1 * small.decode_tokens
    assert large.requests_per_s == pytest.approx(small.requests_per_s, rel=0.03)
    assert large.requests_per_s > 1.2 * evaluate(one, truth, plain(one)).requests_per_s
    assert large.times.served.decode_tokens == pytest.approx(large.decode_tokens, rel=0.02)


@pytest.mark.parametrize("prefill", [50.0, 2e4])
def test_some_fixed_budget_keeps_the_limit_of_stalls_however_much_devices_differ(prefill):
    # they are as fast as answers are shown, so that half of them are slower
    one = scenario(prefill=prefill, spread=0.5, rate=40.0, goals=Goals(stall_probability=0.001))
    made = compare(one, budgets=(1,))
    assert made["best_fixed"].keeps_stall_limit
    assert made["best_fixed"].stalled_share <= 0.001
    assert not made["fixed_1"].keeps_stall_limit


def test_throughput_lies_between_plain_serving_and_the_ceiling():
    one = scenario()
    truth = true_speeds(one)
    rates = [
        *(evaluate(one, truth, policy).requests_per_s for policy in (plain(one), fixed(one, 16))),
        ceiling(one),
    ]
    assert rates == sorted(rates)


def test_devices_that_need_no_cloud_leave_it_nothing():
    one = scenario(prefill=1e6, decode=1e3)
    made = evaluate(one, true_speeds(one), planner(one, cloud_times(one, plain(one))))
    assert made.share(DEVICE_ONLY) == 1.0
    assert (made.decode_tokens, made.prefill_tokens, made.requests_per_s) == (0.0, 0.0, float("inf"))


def test_speeds_are_spread_around_those_of_the_profile_and_the_same_for_a_seed():
    one = scenario(spread=0.2, cloud=CLOUD.model_copy(update={"jitter_s": 0.02}), seed=3)
    truth = true_speeds(one)
    assert truth.prefill_tps.mean() == pytest.approx(1000, rel=0.03)
    assert truth.prefill_tps.std() == pytest.approx(200, rel=0.1)
    assert truth.rtt_s.std() == pytest.approx(0.02, rel=0.1)
    assert (truth.prefill_tps == true_speeds(one).prefill_tps).all()
    assert truth.prefill_tps / 1000 == pytest.approx(truth.decode_tps / 40), "one device, slow in both"


def test_reading_takes_as_long_as_the_speeds_over_the_prompt_say():
    points = (RatePoint(at=0, value=100.0), RatePoint(at=1000, value=50.0))
    lengths = np.array([100.0, 1000.0, 3000.0])
    steps = np.arange(0, 3000) + 0.5
    per_token = 1 / np.interp(steps, [0, 1000], [100.0, 50.0])
    expected = [per_token[: int(n)].sum() for n in lengths]
    assert reading_seconds(points, lengths) == pytest.approx(expected, rel=2e-3)
    trace = Trace("t", np.zeros(3), lengths.astype(int), np.full(3, 10))
    device = MeasuredDevice(name="d", model="m", prefill_tps=points, decode_tps=points, n_ctx=4096)
    one = Scenario(trace=trace, device=device, cloud=CLOUD, rate=20.0)
    assert expected_speeds(one).prefill_tps == pytest.approx(lengths / expected, rel=2e-3)


def test_a_part_of_a_load_keeps_its_prefixes():
    load = Load(
        np.arange(3.0), np.array([40, 50, 60]), np.array([1, 2, 3]), np.array([0, 2, 2, 5]), np.arange(5), 16
    )
    part = part_of(load, np.array([0, 2]))
    assert [row[1:] for row in part.rows()] == [(40, 1, (0, 1)), (60, 3, (2, 3, 4))]


def test_the_front_falls_from_few_tokens_with_stalls_to_more_without():
    points = front(scenario(synthesise("chat", requests=600), spread=0.2))
    assert {point.ratio for point in points} == set(RATIOS)
    for ratio in RATIOS:
        budgets = [point for point in points if (point.policy, point.ratio) == ("fixed", ratio)]
        assert [p.decode_tokens for p in budgets] == sorted(p.decode_tokens for p in budgets)
        assert [p.stalled_share for p in budgets] == sorted((p.stalled_share for p in budgets), reverse=True)
