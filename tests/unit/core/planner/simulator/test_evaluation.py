import numpy as np
import pytest

from pdd_core.planner.outcomes import CLOUD_ONLY, DEVICE_ONLY, HANDOFF
from pdd_core.planner.profiles import CloudProfile, DeviceProfile, RatePoint
from pdd_core.planner.simulator.choices import fixed, plain, planner
from pdd_core.planner.simulator.cloud_times import cloud_times, part_of
from pdd_core.planner.simulator.evaluation import ceiling, compare, evaluate, throughput
from pdd_core.planner.simulator.front import RATIOS, front
from pdd_core.planner.simulator.load import Load
from pdd_core.planner.simulator.scenario import Scenario, expected_speeds, reading_seconds, true_speeds
from pdd_core.planner.types import Goals
from pdd_core.traces import Trace, synthesise

CLOUD = CloudProfile(
    name="c", model="m", base_s=0.004, per_prefill_token_s=2.3e-5, per_sequence_s=2.3e-5, per_context_token_s=3e-8,
    kv_tokens=900_000, max_num_seqs=512, max_num_batched_tokens=1024, rtt_s=0.04, jitter_s=0.0,
)  # fmt: skip


def scenario(trace=None, *, prefill=1000.0, decode=40.0, spread=0.0, n_ctx=32768, **changes):
    device = DeviceProfile(
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


@pytest.mark.parametrize("rate", [25.0, 50.0, 1000.0])
@pytest.mark.parametrize("quality", [0.0, 0.95])
def test_a_rate_above_the_devices_own_keeps_the_limit_of_stalls(rate, quality):
    slow = scenario(prefill=80.0, decode=20.0, spread=0.1, rate=rate, goals=Goals(qoe=quality))
    made = compare(slow, budgets=())
    assert made["planner"].stalled_share <= 0.01
    served = min(quality, float(made["plain"].outcomes.qoe.mean()))
    assert made["planner"].outcomes.qoe.mean() >= served - 0.01


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


def test_throughput_lies_between_plain_serving_and_the_ceiling():
    one = scenario()
    rates = [throughput(one, plain(one)), throughput(one, fixed(one, 16)), ceiling(one)]
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
    device = DeviceProfile(name="d", model="m", prefill_tps=points, decode_tps=points, n_ctx=4096)
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
