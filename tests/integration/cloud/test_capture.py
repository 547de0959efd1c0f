"""Captured attention and cells are the model's: vLLM's own CPU engine against transformers, case by case."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "support" / "capture_cases.py"
EXACT = 1e-5
"""Largest difference of a score; both sides compute in float32."""
CASES = (
    "cold",
    "chunked",
    "exact repeat",
    "shared prefix",
    "whole blocks",
    "whole blocks again",
    "window across a chunk's end",
    "shorter than the window",
    "batched",
    "budget 1",
    "beside plain requests",
    "preempted",
)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("capture")
    environ = {**os.environ, "PYTHONWARNINGS": "default"}
    command = [sys.executable, str(SCRIPT), str(folder)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]
    return json.loads((folder / "cases.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_scores_are_eager_attention(outcome, case):
    results = outcome["cases"][case]
    assert results
    for result in results:
        assert result["difference"] <= EXACT, result
        assert result["difference"] < result["largest"] / 1000, result
        assert result["window"] == min(16, result["prompt"])


@pytest.mark.parametrize("case", CASES)
def test_cells_are_transformers_cache(outcome, case):
    for result in outcome["cases"][case]:
        if result["prompt"] == 1:
            assert result["cells"] == {"none": "not_captured"}
        else:
            assert result["cells"]["tokens"] == result["prompt"] - 1
            assert result["cells"]["differ"] < 1e-3, result  # float16 has 11 bits


def test_no_cells_were_lost_and_their_memory_is_free(outcome):
    kept = outcome["kept"]
    assert kept["kept"] > 1000
    assert kept["failed"] == kept["no_room"] == kept["waiting_bytes"] == 0


def test_every_case_was_run(outcome):
    assert tuple(outcome["cases"]) == CASES


def test_a_prefix_hit_leaves_the_window_to_compute_and_no_more_than_its_block(outcome):
    cached = {name: results[0]["cached"] for name, results in outcome["cases"].items()}
    assert cached["exact repeat"] == 96  # of 130: blocks of 32, and 16 tokens to see
    assert cached["shared prefix"] == 96
    assert cached["whole blocks again"] == 96  # of 128, where plain vLLM would also leave one block


def test_requests_were_preempted_in_their_prefill_and_behind_it(outcome):
    at = [moment for result in outcome["cases"]["preempted"] for moment in result["preempted_at"]]
    assert any(moment == 0 for moment in at)
    assert any(moment > 0 for moment in at)


def ends_inside(result):
    """Steps that ended inside the prompt, by the distance from its end."""
    return [result["prompt"] - end for end in result["ends"]]


def test_prompts_were_cut_where_the_cases_say(outcome):
    cases = outcome["cases"]
    assert not ends_inside(cases["cold"][0])
    assert len(ends_inside(cases["chunked"][0])) >= 2
    across = [end for result in cases["window across a chunk's end"] for end in ends_inside(result)]
    assert sum(0 < end < 16 for end in across) >= 3  # a part of the window in each of two steps
    assert max(result["beside"] for result in cases["batched"]) >= 2
    assert cases["beside plain requests"][0]["beside"] >= 1


def test_plain_requests_are_not_looked_at(outcome):
    before, after = outcome["untouched"]["before"], outcome["untouched"]["after"]
    assert {**before, "followed": 0} == {**after, "followed": 0}
    assert after["followed"] == 0


def test_an_abort_inside_the_window_leaves_nothing(outcome):
    aborted = outcome["aborted"]
    assert aborted["partial"]["partial"] == 1
    assert aborted["after"]["partial"] == 0
    assert aborted["after"]["missed"] == 0
    assert aborted["next"][0]["difference"] <= EXACT


def test_a_thousand_requests_leave_what_the_settings_allow(outcome):
    before, after = outcome["residue"]["before"], outcome["residue"]["after"]
    assert after["scored"] - before["scored"] == 1000
    assert after["missed"] == after["partial"] == after["followed"] == 0
    assert after["stored"] <= 64  # additional_config.pdd.max_handoffs of that engine
