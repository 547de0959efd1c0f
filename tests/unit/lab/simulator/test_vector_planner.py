"""Many plans at once are the same plans."""

from __future__ import annotations

import math

import numpy as np
import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.planner.lengths import OutputLengths
from pdd_core.planner.planner import Planner
from pdd_core.planner.types import CloudState, DeviceState, Estimate, Goals, PlanRequest, Verdict
from pdd_lab.simulator.outcomes import VERDICTS
from pdd_lab.simulator.vector_cases import UNDECIDED
from pdd_lab.simulator.vector_planner import Circumstances, plan_many


def learnt(median):
    lengths = OutputLengths()
    generator = np.random.default_rng(median)
    for _ in range(60):
        output = max(1, int(generator.lognormal(math.log(median), 0.9)))
        lengths.observe("", int(generator.integers(20, 6000)), output)
    return lengths


LENGTHS = {median: learnt(median) for median in (13, 150)}

doubts = st.one_of(st.just(0.0), st.floats(0, 2.5))
requests = st.fixed_dictionaries(
    {
        "prompt_tokens": st.integers(1, 12_000),
        "held_tokens": st.integers(0, 3000),
        "max_tokens": st.integers(1, 3000),
        "rate": st.one_of(st.floats(2, 80), st.just(math.inf)),
        "prefill_tps": st.floats(5, 5000),
        "prefill_tps_sd": st.floats(0, 800),
        "decode_tps": st.floats(3, 150),
        "ttft_s": st.floats(0.01, 5),
        "ttft_s_sd": st.floats(0, 2),
        "tpot_s": st.floats(0.004, 0.2),
        "rtt_s": st.floats(0, 0.5),
        "rtt_s_sd": st.floats(0, 0.2),
        "wait_s": st.one_of(st.just(0.0), st.floats(0, 5)),
        "wait_s_sd": st.one_of(st.just(0.0), st.floats(0, 2)),
        "n_ctx": st.integers(512, 16_384),
        "max_model_len": st.integers(1024, 32_768),
        "prefill_tps_doubt": doubts,
        "ttft_s_doubt": doubts,
        "rtt_s_doubt": doubts,
        "held_whole_tokens": st.integers(0, 3000),
        "available": st.sampled_from([True, True, True, False]),
        "kv_cell_bytes": st.sampled_from([9_000, 53_000]),
        "kv_always": st.sampled_from([False, False, True]),
        "kv_metered": st.sampled_from([False, False, True]),
        "link_bps": st.one_of(st.just(0.0), st.floats(1e4, 1e9)),
        "link_bps_sd": st.one_of(st.just(0.0), st.floats(0, 1e7)),
        "link_bps_doubt": doubts,
        "verdict": st.sampled_from([UNDECIDED, UNDECIDED, *range(len(VERDICTS))]),
    }
).map(lambda one: {**one, "held_whole_tokens": min(one["held_tokens"], one["held_whole_tokens"])})


def one_by_one(lengths, goals, one, *, byte_weight, **options):
    prefill = Estimate(one["prefill_tps"], one["prefill_tps_sd"], one["prefill_tps_doubt"])
    return Planner(lengths, goals, byte_weight=byte_weight).pdd_plan(
        PlanRequest(
            num_prompt_tokens=one["prompt_tokens"],
            num_held_tokens=one["held_tokens"],
            num_held_whole_tokens=one["held_whole_tokens"],
            max_tokens=one["max_tokens"],
            rate=one["rate"],
            verdict=None if one["verdict"] == UNDECIDED else VERDICTS[one["verdict"]],
            kv_cell_bytes=one.get("kv_cell_bytes"),
            kv_always=one.get("kv_always", False),
            kv_metered=one.get("kv_metered", False),
            **options,
        ),
        DeviceState(
            prefill_tps=prefill,
            decode_tps=Estimate(one["decode_tps"]),
            n_ctx=one["n_ctx"],
            wait_s=Estimate(one["wait_s"], one["wait_s_sd"]),
        ),
        CloudState(
            ttft_s=Estimate(one["ttft_s"], one["ttft_s_sd"], one["ttft_s_doubt"]),
            tpot_s=Estimate(one["tpot_s"]),
            rtt_s=Estimate(one["rtt_s"], one["rtt_s_sd"], one["rtt_s_doubt"]),
            refines=True,
            max_model_len=one["max_model_len"],
            available=one["available"],
            link_bps=Estimate(one["link_bps"], one["link_bps_sd"], one["link_bps_doubt"])
            if "link_bps" in one
            else None,
        ),
    )


@examples(200)
@given(
    many=st.lists(requests, min_size=1, max_size=8),
    median=st.sampled_from(sorted(LENGTHS)),
    goals=st.builds(
        Goals,
        stall_probability=st.floats(0.001, 0.3),
        ttft_s=st.floats(0.05, 3),
        qoe=st.floats(0, 1),
        must_begin_in_cloud=st.booleans(),
        lowest_ratio=st.sampled_from([0.25, 0.5, 1.0]),
    ),
    option=st.sampled_from([{}, {"refinable": True}, {"refine_ratio": 0.4}, {"refine_ratio": 1.0}]),
    unknown=st.sampled_from([(), (), (), ("kv_cell_bytes",), ("link_bps", "link_bps_sd", "link_bps_doubt")]),
    byte_weight=st.sampled_from([0.0, 1e-5, 1e-3]),
)
def test_as_one_by_one(many, median, goals, option, unknown, byte_weight) -> None:
    lengths = LENGTHS[median]
    many = [{name: value for name, value in one.items() if name not in unknown} for one in many]
    option = {**option, "byte_weight": byte_weight}
    columns = {name: np.array([one[name] for one in many]) for name in many[0]}
    prompts = columns.pop("prompt_tokens")
    # what all requests have in common is given as one number
    arrays = {name: column if len(set(column)) > 1 else column[0] for name, column in columns.items()}
    plans = plan_many(
        Circumstances(prompt_tokens=prompts, **arrays),
        lengths.tables(),
        lengths.buckets(prompts),
        goals=goals,
        **option,
    )
    for index, one in enumerate(many):
        expected = one_by_one(lengths, goals, one, **option)
        verdict = VERDICTS[plans.verdict[index]]
        assert (verdict, plans.decode_budget[index] or None) == (expected.verdict, expected.decode_budget)
        if verdict is Verdict.HANDOFF:
            assert plans.refine_ratio[index] == (expected.refine_ratio or 1.0)
            assert plans.kv[index] == expected.kv
            chosen = [
                one
                for one in expected.why.alternatives
                if (one.verdict, one.refine_ratio, one.kv) == (verdict, expected.refine_ratio, expected.kv)
            ]
            assert plans.cost[index] == pytest.approx(chosen[0].cost)
            assert plans.stall_probability[index] == pytest.approx(chosen[0].stall_probability, rel=1e-9)
            assert plans.kv_bytes[index] == pytest.approx(chosen[0].kv_bytes)


def test_numbers_stand_for_all_and_chunks_do_not_show(monkeypatch) -> None:
    monkeypatch.setattr("pdd_lab.simulator.vector_planner._CHUNK", 7)
    lengths = LENGTHS[150]
    prompts = np.arange(100, 3000, 97)
    common = {"max_tokens": 1000, "rate": 20, "prefill_tps": 500, "decode_tps": 30, "ttft_s": 0.1, "tpot_s": 0.03}
    plans = plan_many(Circumstances(prompt_tokens=prompts, **common), lengths.tables(), lengths.buckets(prompts))
    assert len(plans.verdict) == len(prompts)
    handed_off = plans.verdict == VERDICTS.index(Verdict.HANDOFF)
    assert handed_off.sum() > 10
    # the longer the prompt, the more the cloud decodes
    assert np.all(np.diff(plans.decode_budget[handed_off]) >= 0)
