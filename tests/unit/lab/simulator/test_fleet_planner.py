from itertools import product

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError
from pdd_core.planner.profiles import MeasuredCloud
from pdd_core.planner.types import Verdict
from pdd_lab.simulator.cell_link import CellLink
from pdd_lab.simulator.fleet_planner import FleetClass, Harm, Setting, gpu_seconds, plan_fleet, settings_of
from pdd_lab.simulator.instance import simulate
from pdd_lab.simulator.offered_load import Load

CLOUD = MeasuredCloud(
    name="c", model="m", base_s=0.004, per_prefill_token_s=2.3e-5, per_sequence_s=2.3e-5, per_context_token_s=3e-8,
    kv_tokens=900_000, max_num_seqs=512, max_num_batched_tokens=2048, rtt_s=0.04, jitter_s=0.0,
)  # fmt: skip


def a_class(**changes):
    lengths = {"prompt_tokens": 1000, "output_tokens": 200}
    values = {"name": "c", "requests_per_s": 10.0, "prefill_tps": 1000.0, "decode_tps": 40.0, **lengths}
    return FleetClass(**values | changes)


def ways(one, **changes):
    return settings_of(one, CLOUD, **{"rate": 20.0, "ttft_target_s": 0.5, "harm": Harm()} | changes)


def test_cells_let_slow_devices_do_more_unless_their_bytes_harm() -> None:
    slow, link = a_class(prefill_tps=60.0), CellLink(bytes_per_s=12.5e6, spread=0.2, cell_bytes=13_312)
    without, made = ways(slow), ways(slow, link=link)
    with_cells = [one for one in made if one.kv]
    assert with_cells
    assert all(0 < one.kv_bytes < 1000 * link.cell_bytes for one in with_cells)

    def least_gpu(settings):
        return min(one.gpu_s for one in settings if one.stalled_share < 0.01)

    assert least_gpu(made) < least_gpu(without)
    assert not any(one.kv for one in ways(slow, link=link, harm=Harm(gigabyte=1000.0)))


def setting(gpu_s, harm):
    return Setting(Verdict.HANDOFF, 1, 1.0, gpu_s, 0.0, harm)


options = st.lists(
    st.builds(setting, st.sampled_from([0.0, 0.01, 0.05, 0.2]), st.sampled_from([0.0, 0.1, 0.5, 0.9])),
    min_size=1,
    max_size=3,
)


@examples(30)
@given(st.lists(options, min_size=1, max_size=3), st.sampled_from([0.0, 0.5, 1.0, 5.0]))
def test_the_whole_number_plan_is_the_best_of_all(given_settings, gpus):
    classes = [a_class(name=str(i), requests_per_s=5.0 * (i + 1)) for i in range(len(given_settings))]
    plan = plan_fleet(classes, given_settings, gpus, mixed=False)
    best = min(
        sum(
            one.requests_per_s * (1.0 if way is None else way.harm) for one, way in zip(classes, ways, strict=True)
        )
        for ways in product(*([*given, None] for given in given_settings))
        if sum(
            one.requests_per_s * (0.0 if way is None else way.gpu_s)
            for one, way in zip(classes, ways, strict=True)
        )
        <= gpus + 1e-9
    )
    assert plan.harm == pytest.approx(best, abs=1e-6)
    assert plan.gpus_used <= gpus + 1e-6
    assert plan_fleet(classes, given_settings, gpus).harm <= best + 1e-6


@examples(30)
@given(st.lists(options, min_size=1, max_size=3), st.floats(0.05, 3.0))
def test_the_shadow_price_is_what_a_little_more_gpu_is_worth(given_settings, gpus):
    classes = [a_class(name=str(i)) for i in range(len(given_settings))]
    plan = plan_fleet(classes, given_settings, gpus)
    less, more = (plan_fleet(classes, given_settings, gpus + change).harm for change in (-1e-4, 1e-4))
    assert (plan.harm - more) / 1e-4 - 1e-3 <= plan.shadow_price <= (less - plan.harm) / 1e-4 + 1e-3


def test_every_class_is_served_whole_where_there_are_gpus_enough():
    classes = [a_class(), a_class(name="slow", prefill_tps=30.0, decode_tps=5.0)]
    plan = plan_fleet(classes, [ways(one) for one in classes], 100)
    assert {share.name: share.share for share in plan.shares} == {"c": 1.0, "slow": 1.0}
    assert plan.shadow_price == 0.0
    assert plan.served_per_s == 20.0


def test_with_fewer_gpus_handoffs_come_first_and_refusals_last():
    one = a_class(requests_per_s=100.0)
    given_settings = [ways(one)]
    verdicts = [
        {
            share.setting.verdict if share.setting else None
            for share in plan_fleet([one], given_settings, gpus).shares
        }
        for gpus in (100.0, 3.0, 0.5)
    ]
    assert verdicts[0] == {Verdict.HANDOFF}
    assert Verdict.HANDOFF in verdicts[1]
    assert None not in verdicts[1]
    assert None in verdicts[2]


def test_settings_that_another_beats_are_left_out():
    found = ways(a_class(refines=False))
    assert [one.gpu_s for one in found] == sorted(one.gpu_s for one in found)
    assert [one.harm for one in found] == sorted((one.harm for one in found), reverse=True)


def test_a_device_alone_must_begin_in_time():
    assert Verdict.DEVICE_ONLY in {one.verdict for one in ways(a_class(prompt_tokens=200))}
    assert Verdict.DEVICE_ONLY not in {one.verdict for one in ways(a_class(prompt_tokens=2000))}


def test_a_slow_device_that_may_read_less_of_a_prompt_has_more_ways():
    slow = {"prefill_tps": 100.0, "prompt_tokens": 4000}
    assert min(one.refine_ratio for one in ways(a_class(**slow, refines=True))) < 1.0
    assert min(one.refine_ratio for one in ways(a_class(**slow))) == 1.0


@pytest.mark.parametrize(("prompt", "output"), [(128, 1024), (1024, 8), (1155, 211), (512, 1)])
def test_gpu_seconds_are_those_of_the_simulator_in_a_full_batch(prompt, output):
    served = simulate(Load.at_once(4000, prompt, output), CLOUD)
    assert gpu_seconds(CLOUD, prompt, output) == pytest.approx(served.end_s / 4000, rel=0.15)


def test_a_fleet_without_classes_is_refused():
    with pytest.raises(ConfigurationError, match="needs classes"):
        plan_fleet([], [], 1.0)
