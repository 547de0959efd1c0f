from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError
from pdd_core.planner.cost import decode_cost, prefill_weight
from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice, RatePoint, mean_rate, rate_at

CLOUD = {
    "name": "a GPU",
    "model": "m",
    "base_s": 0.01,
    "per_prefill_token_s": 2.5e-5,
    "per_sequence_s": 1e-4,
    "per_context_token_s": 1e-8,
    "kv_tokens": 400_000,
    "max_num_seqs": 256,
    "max_num_batched_tokens": 8192,
    "rtt_s": 0.05,
    "jitter_s": 0.01,
}
DEVICE = {
    "name": "phone",
    "model": "m",
    "prefill_tps": [{"at": 0, "value": 900}, {"at": 2000, "value": 400}],
    "decode_tps": [{"at": 0, "value": 30}],
    "n_ctx": 4096,
}

curves = st.lists(
    st.tuples(st.integers(0, 50).map(lambda step: 200 * step), st.floats(20, 5000)),
    min_size=1,
    max_size=6,
    unique_by=lambda point: point[0],
).map(lambda points: tuple(RatePoint(at=at, value=value) for at, value in sorted(points)))


def test_speeds_are_linear_between_points_and_constant_outside() -> None:
    points = MeasuredDevice.model_validate(DEVICE).prefill_tps
    assert rate_at(points, [0, 1000, 2000, 9000]).tolist() == [900, 650, 400, 400]
    assert mean_rate(points, 3000, 4000) == pytest.approx(400)
    assert mean_rate(points, 500, 500) == rate_at(points, 500)


@given(curves, st.floats(0, 12_000), st.floats(1, 8000))
def test_the_mean_is_that_of_the_time(points, begin, tokens) -> None:
    edges = np.linspace(begin, begin + tokens, 20_001)
    middles = (edges[1:] + edges[:-1]) / 2
    seconds = np.sum(np.diff(edges) / rate_at(points, middles))
    assert mean_rate(points, begin, begin + tokens) == pytest.approx(tokens / seconds, rel=2e-3)


@given(curves, st.lists(st.floats(0, 12_000), min_size=1, max_size=5))
def test_many_at_once_are_the_same(points, begins) -> None:
    ends = np.array(begins) + 700
    together = mean_rate(points, begins, ends)
    for begin, end, rate in zip(begins, ends, together, strict=True):
        assert rate == mean_rate(points, begin, end)


@pytest.mark.parametrize(("profile", "fields"), [(MeasuredCloud, CLOUD), (MeasuredDevice, DEVICE)])
def test_a_profile_is_written_and_read(profile, fields, tmp_path) -> None:
    made = profile.model_validate(fields)
    made.save(tmp_path / "profile.json")
    assert profile.load(tmp_path / "profile.json") == made
    written = json.loads((tmp_path / "profile.json").read_text())
    assert written["schema_version"] == "1.0"
    (tmp_path / "later.json").write_text(json.dumps({**written, "schema_version": "1.7", "new": 1}))
    assert profile.load(tmp_path / "later.json").name == made.name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prefill_tps": []}, "prefill_tps"),
        ({"prefill_tps": [{"at": 5, "value": 1}, {"at": 5, "value": 2}]}, "prefill_tps must have rising lengths"),
        ({"decode_tps": [{"at": 0, "value": 0}]}, "decode_tps.0.value"),
        ({"decode_tps": [{"at": 0, "value": "fast"}]}, "decode_tps.0.value"),
        ({"n_ctx": -1}, "n_ctx"),
        ({"name": None}, "name"),
        ({"schema_version": "2.0"}, "2.0"),
    ],
)
def test_a_profile_that_cannot_be_names_file_and_field(change, named, tmp_path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps({**DEVICE, **change}))
    with pytest.raises(ConfigurationError, match=named) as error:
        MeasuredDevice.load(file)
    assert "mine.json" in str(error.value)


def test_files_that_cannot_be_read_or_written_are_named(tmp_path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read"):
        MeasuredCloud.load(tmp_path)
    (tmp_path / "text").write_text("no JSON")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        MeasuredCloud.load(tmp_path / "text")
    with pytest.raises(ConfigurationError, match="cannot be written"):
        MeasuredCloud.model_validate(CLOUD).save(tmp_path / "none" / "file.json")


def test_prefill_costs_what_the_cache_could_have_held_meanwhile() -> None:
    assert prefill_weight(MeasuredCloud.model_validate(CLOUD)) == pytest.approx(10)


@given(st.integers(1, 5000), st.integers(0, 300))
def test_decoding_costs_what_each_step_holds(prompt, decoded) -> None:
    held = sum(prompt + k for k in range(1, decoded + 1))
    assert decode_cost(prompt, decoded, decoded**2, tpot_s=0.03) == pytest.approx(0.03 * held)
