"""The main job, as a user runs it, against the running server: real tokens from both engines, and every figure."""

import json
import os
import signal
import subprocess
import sys
from itertools import pairwise

import pytest
from cloud_support import KEY, still, wait_until
from command_line import PDD

DEMO = [*PDD, "demo"]
PER_TOKEN = ("token_ids", "source", "shown_at_ms", "received_at_ms")


@pytest.fixture(scope="module")
def record(cloud, tmp_path_factory):
    """The JSON of one short demo, and what it printed."""
    path = tmp_path_factory.mktemp("demo") / "out.json"
    command = [*DEMO, "--url", cloud.base_url, "--api-key", KEY, "--json", str(path), "--max-tokens", "40"]
    command += [
        "--link",
        "100mbit/5ms",
        "--plot",
        str(path.with_name("demo.png")),
        "--budget",
        "36",
        "--rate",
        "8",
        "--question",
        "Who is accused?",
        "--prompt-file",
        str(document(path)),
    ]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert run.returncode == 0, run.stderr
    assert path.with_name("demo.png").stat().st_size > 10_000
    assert b"<svg" in path.with_name("demo.svg").read_bytes()
    return json.loads(path.read_text()), run.stdout


def document(path):
    """A document short enough for a test."""
    short = path.parent / "document.txt"
    short.write_text("The history of the present King of Great Britain is a history of repeated injuries. " * 8)
    return short


def test_each_mode_has_every_figure_for_every_token(record):
    facts, _ = record
    assert [run["mode"] for run in facts["runs"]] == ["handoff", "kv_handoff", "device_only", "cloud_only"]
    for run in facts["runs"]:
        total = len(run["token_ids"])
        assert total > 1
        assert {len(run[name]) for name in PER_TOKEN} == {total}
        assert run["source"].count("cloud") == run["cloud_tokens"]
        assert run["source"].count("device") == run["device_tokens"]
        assert run["ttft_ms"] == run["shown_at_ms"][0]
        gaps = [later - earlier for earlier, later in pairwise(run["shown_at_ms"])]
        assert run["tpot_max_ms"] == pytest.approx(max(gaps), abs=0.01)
        assert run["tpot_mean_ms"] == pytest.approx(sum(gaps) / len(gaps), abs=0.01)
        assert all(shown >= got for shown, got in zip(run["shown_at_ms"], run["received_at_ms"], strict=True))
        assert run["shown_at_ms"] == sorted(run["shown_at_ms"])
        assert run["prompt_tokens"] == facts["prompt_tokens"] > 100
        assert run["text"].strip()


def test_every_mode_keeps_the_rate_to_the_end_of_its_answer(record):
    facts, _ = record
    assert facts["rate"] == 8
    for run in facts["runs"]:
        assert run["tpot_mean_ms"] >= 0.9 * 1000 / 8


def test_the_modes_use_the_engines_they_say(record):
    handoff, _, device, cloud = record[0]["runs"]
    assert handoff["decode_budget"] == 36
    # a device that got hardly any of the processor's time was helped out, maybe to the answer's end
    late = handoff["extensions"] > 0
    assert 1 <= handoff["cloud_tokens"] <= (40 if late else 36)
    assert handoff["source"][0] == "cloud"
    assert handoff["source"] == sorted(handoff["source"])
    assert late or handoff["caught_up_at_ms"] is not None
    assert (device["cloud_tokens"], cloud["device_tokens"]) == (0, 0)
    assert handoff["token_ids"][: handoff["cloud_tokens"]] == cloud["token_ids"][: handoff["cloud_tokens"]]


def test_the_kv_cache_crosses_the_link_and_takes_the_place_of_prefill(record):
    facts, printed = record
    runs = {run["mode"]: run for run in facts["runs"]}
    report = runs["kv_handoff"]["kv"]
    assert [mode for mode, run in runs.items() if run["kv"]] == ["kv_handoff"]
    assert (report["reason"], report["guard"]) != ("differs", "disagreed")
    assert report["cells"] + report["prefilled"] == facts["prompt_tokens"] - 1
    assert report["bytes"] >= report["cells"] * facts["kv"]["cell_bytes"] > 0
    assert facts["link"] == {"bit_s": 1e8, "rtt_s": 0.005}
    assert "100 Mbit/s, round trip 5 ms, emulated" in printed
    assert f"{report['cells']:,} of {facts['prompt_tokens']:,} cells" in " ".join(printed.split())


def test_the_profile_is_disclosed_and_never_beaten(record):
    facts, printed = record
    assert facts["device_profile"] == {"name": "phone", "prefill_tps": 80.0, "decode_tps": 20.0}
    assert "phone" in printed
    assert "80" in printed
    device = facts["runs"][2]
    assert device["ttft_ms"] >= 1000 * device["prompt_tokens"] / 80
    for earlier, later in pairwise(device["received_at_ms"]):
        assert later - earlier >= 1000 / 20 - 0.01


def test_ctrl_c_ends_it_at_once_and_frees_the_cloud(cloud, tmp_path):
    command = [*DEMO, "--url", cloud.base_url, "--api-key", KEY, "--prompt-file", str(document(tmp_path / "x"))]
    printed, errors = tmp_path / "out.txt", tmp_path / "err.txt"
    with (
        printed.open("w") as out,
        errors.open("w") as err,
        subprocess.Popen(command, stdout=out, stderr=err, start_new_session=True) as demo,
    ):
        try:
            # the answer is being shown
            wait_until(lambda: "[cloud]" in printed.read_text() or demo.poll() is not None, seconds=240)
            assert demo.poll() is None, errors.read_text()
            os.killpg(demo.pid, signal.SIGINT)
            assert demo.wait(timeout=60) == 130
        finally:
            demo.kill()
    assert "Traceback" not in errors.read_text()
    still(cloud)


def test_doctor_finds_a_healthy_cloud(cloud, prepared):
    command = [sys.executable, "-m", "pdd_cli.main", "doctor", "--json", "--url", cloud.base_url, "--api-key", KEY]
    environ = {**os.environ, "VLLM_PLUGINS": "pdd"}
    run = subprocess.run(
        [*command, "--gguf", str(prepared.gguf)], capture_output=True, text=True, timeout=280, env=environ
    )
    assert run.returncode == 0, run.stdout + run.stderr
    findings = json.loads(run.stdout)["findings"]
    assert not [finding for finding in findings if finding["level"] == "fail"]
    assert {"cloud", "tokenizer", "KV cache", "link"} <= {finding["check"] for finding in findings}
    said = {finding["check"]: finding["detail"] for finding in findings}
    assert "the cloud hands it over, and the device takes it" in said["KV cache"]
    assert "Mbit/s" in said["link"]


def test_doctor_names_a_wrong_key(cloud):
    command = [sys.executable, "-m", "pdd_cli.main", "doctor", "--url", cloud.base_url, "--api-key", "wrong"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert run.returncode == 1
    assert "key" in run.stdout
