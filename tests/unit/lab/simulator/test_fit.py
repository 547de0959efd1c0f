import json
from pathlib import Path

import pytest

from pdd_core.errors import ConfigurationError
from pdd_core.planner.profiles import MeasuredCloud
from pdd_lab.simulator.fit import COSTS, Measurement, fit_cloud_profile, predicted, replay

MEASURED = [
    Measurement.model_validate(row)
    for row in json.loads((Path(__file__).parents[3] / "data/h200_8b_throughput.json").read_text())
]
"""Llama-3.1-8B's shape in bf16 on one H200, vLLM 0.26.0, 2026-11-23."""
UNCACHED = [row for row in MEASURED if not row.shared_prefix]
KV_TOKENS = 914_656


def made_up(**changes):
    costs = dict(zip(COSTS, (0.004, 2e-5, 3e-5, 2e-8, 2e-4, 1e-9), strict=True))
    limits = {
        "kv_tokens": 50_000,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 1024,
        "rtt_s": 0.0,
        "jitter_s": 0.0,
    }
    return MeasuredCloud(name="m", model="m", **costs | limits | changes)


SHAPES = [
    (64, 200, None),
    (64, 200, 4),
    (900, 30, None),
    (900, 30, 1),
    (300, 300, None),
    (300, 300, 8),
    (2000, 9, 2),
]


def measured(cloud):
    rows = [
        Measurement(
            prompt=prompt, output=output, cap=cap, requests=80, requests_per_s=1.0,
            max_num_seqs=64, max_num_batched_tokens=1024,
        )
        for prompt, output, cap in SHAPES
    ]  # fmt: skip
    return [row.model_copy(update={"requests_per_s": predicted(row, cloud)}) for row in rows]


def test_what_a_profile_predicts_leads_back_to_it():
    cloud = made_up()
    fitted = fit_cloud_profile(measured(cloud), name="m", model="m", kv_tokens=50_000)
    for cost in COSTS:
        assert getattr(fitted, cost) == pytest.approx(getattr(cloud, cost), rel=1e-4)


def test_a_known_cost_is_kept():
    fitted = fit_cloud_profile(measured(made_up()), name="m", model="m", kv_tokens=50_000, base_s=0.005)
    assert fitted.base_s == 0.005
    assert fitted.per_prefill_token_s == pytest.approx(2e-5, rel=0.1)


def test_too_few_measurements_are_refused():
    with pytest.raises(ConfigurationError, match="6 costs"):
        fit_cloud_profile(measured(made_up())[:3], name="m", model="m", kv_tokens=50_000)


def test_each_measured_shape_is_predicted_from_the_others():
    """Within 11 % each, all but one within 10 %: see docs/plan.md."""
    errors = []
    for shape in {(row.prompt, row.output) for row in UNCACHED}:
        others = [row for row in UNCACHED if (row.prompt, row.output) != shape]
        profile = fit_cloud_profile(others, name="h200-8b", model="8b", kv_tokens=KV_TOKENS)
        left_out = [row for row in UNCACHED if (row.prompt, row.output) == shape]
        errors += [abs(predicted(row, profile) / row.requests_per_s - 1) for row in left_out]
    assert len(errors) == 24
    assert sum(error <= 0.10 for error in errors) >= 23
    assert max(errors) <= 0.11


def test_preemptions_are_those_that_vllm_counted():
    profile = fit_cloud_profile(UNCACHED, name="h200-8b", model="8b", kv_tokens=KV_TOKENS)
    counted = {(128, 1024): 231, (256, 2048): 116, (512, 1024): 125}
    found = {
        (row.prompt, row.max_num_seqs if row.prompt != 256 else 2048): replay(row, profile).preemptions
        for row in UNCACHED
        if row.cap is None and (row.prompt, row.max_num_seqs) in {(128, 1024), (256, 512), (512, 1024)}
    }
    assert found == counted


def test_a_prefix_that_was_cached_before_costs_nothing():
    row = Measurement(
        prompt=1024, output=1, requests=50, requests_per_s=1.0, max_num_seqs=64, max_num_batched_tokens=1024,
        shared_prefix=921,
    )  # fmt: skip
    assert replay(row, made_up()).cached_tokens.tolist() == [912] * 50
