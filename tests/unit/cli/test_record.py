from __future__ import annotations

import json

import pytest

from pdd_cli.demo.record import record, write_record
from pdd_cli.demo.ways import Way
from pdd_llamacpp_adapter.session.outcome import KVReport, Mode

FIELDS = {
    "mode", "prompt_tokens", "cloud_tokens", "device_tokens", "token_ids", "source", "shown_at_ms",
    "received_at_ms", "caught_up_at_ms", "decode_budget", "ttft_ms", "tpot_mean_ms", "tpot_max_ms", "text",
    "finish_reason",
}  # fmt: skip


@pytest.fixture
def outcomes(outcome):
    return {
        Way.HANDOFF: outcome(Mode.HANDOFF, cloud=2, device=3),
        Way.KV_HANDOFF: outcome(Mode.HANDOFF, cloud=1, device=4, kv=KVReport(cells=7, bytes=70, seconds=0.5)),
        Way.DEVICE_ONLY: outcome(Mode.DEVICE_ONLY, device=5, ttft=15.0),
        Way.CLOUD_ONLY: outcome(Mode.CLOUD_ONLY, cloud=1),
    }


def test_there_is_one_run_per_way_with_every_field(facts, outcomes) -> None:
    runs = record(facts, outcomes)["runs"]
    assert [run["mode"] for run in runs] == ["handoff", "kv_handoff", "device_only", "cloud_only"]
    assert all(set(run) >= FIELDS for run in runs)


def test_per_token_lists_are_of_one_length_and_in_milliseconds(facts, outcomes) -> None:
    run = record(facts, outcomes)["runs"][0]
    assert run["source"] == ["cloud", "cloud", "device", "device", "device"]
    assert run["shown_at_ms"] == [5000.0, 5125.0, 5250.0, 5375.0, 5500.0]
    assert len(run["token_ids"]) == len(run["received_at_ms"]) == run["cloud_tokens"] + run["device_tokens"]
    assert (run["ttft_ms"], run["tpot_mean_ms"], run["tpot_max_ms"]) == (5000.0, 125.0, 125.0)
    assert run["text"] == " w0 w1 w2 w3 w4"


def test_a_figure_that_does_not_exist_is_null(facts, outcomes) -> None:
    run = record(facts, outcomes)["runs"][3]
    assert run["tpot_mean_ms"] is run["caught_up_at_ms"] is run["decode_budget"] is None


def test_what_came_of_the_kv_cache_is_in_its_run_alone(facts, outcomes) -> None:
    runs = record(facts, outcomes)["runs"]
    assert [run["kv"] and run["kv"]["bytes"] for run in runs] == [None, 70, None, None]


def test_the_header_has_the_profiles_numbers_and_the_versions(facts, outcomes) -> None:
    header = record(facts, outcomes)
    assert header["device_profile"] == {"name": "phone", "prefill_tps": 80.0, "decode_tps": 20.0}
    assert header["versions"]["cloud"] == "vllm 0.32.0"


def test_the_file_is_complete_json_and_replaces_an_older_one(facts, outcomes, tmp_path) -> None:
    path = tmp_path / "demo.json"
    path.write_text("old")
    write_record(path, facts, outcomes)
    assert json.loads(path.read_text()) == record(facts, outcomes)
    assert list(tmp_path.iterdir()) == [path]
