"""`bench device`, `replay` and `generate`, as a user runs them: real llama.cpp, a real server, the demo model."""

import json
import signal
import subprocess
import time

import pytest
from command_line import PDD

from pdd_core.planner.profiles import MeasuredDevice

REQUESTS = [(0.0, 40, 6), (0.05, 70, 9), (0.1, 2000, 10)]
"""Arrival, prompt, answer; the last is too long for the server's 1,024 tokens."""


def run(*words):
    done = subprocess.run(
        [*PDD, *map(str, words)], capture_output=True, text=True, timeout=280, stdin=subprocess.DEVNULL
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


@pytest.fixture(scope="module")
def benched(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    files = ("--out", folder / "device.json", "--json", folder / "all.json")
    done = run("bench", "device", "--quick", "--threads", "1,2", "--n-ctx", 2048, *files)
    return folder, json.loads((folder / "all.json").read_text()), done.stdout


def test_the_device_is_measured_into_a_profile(benched):
    folder, report, printed = benched
    profile = MeasuredDevice.load(folder / "device.json")
    assert (profile.model, profile.n_ctx) == ("smollm2", 2048)
    assert [point.at for point in profile.prefill_tps] == [64.0, 196.0]
    assert [point.at for point in profile.decode_tps] == [132.0, 260.0]
    assert "tokens per second, median" in printed
    assert {rate["threads"] for rate in report["rates"]} == {1, 2}
    assert report["spread"] == {"1": None, "2": None}
    assert (folder / "device.png").stat().st_size > 10_000
    assert b"<svg" in (folder / "device.svg").read_bytes()


@pytest.mark.parametrize("wait", [0.3, 3.0], ids=["loading", "in the first pass"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_midst_of_llama_cpp_ends_it(number, wait, tmp_path):
    command = [*PDD, "bench", "device", "--out", str(tmp_path / "device.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        assert b"Measuring" in process.stdout.readline()
        time.sleep(wait)
        process.send_signal(number)
        printed, _ = process.communicate(timeout=120)
    assert process.returncode == 128 + number
    assert b"Traceback" not in printed
    assert b"ignored" not in printed
    assert not (tmp_path / "device.json").exists()


def test_many_tokens_at_once_are_faster_than_one_by_one(benched):
    _, report, _ = benched
    for threads in (1, 2):
        speed = {
            rate["tokens"]: rate["median_tps"]
            for rate in report["rates"]
            if rate["kind"] == "batch" and rate["threads"] == threads
        }
        assert speed[64] > speed[1]


def test_a_trace_is_replayed_against_the_local_server(device, tmp_path):
    trace, report = tmp_path / "t.jsonl", tmp_path / "r.json"
    rows = [{"arrival_s": at, "prompt_tokens": prompt, "output_tokens": answer} for at, prompt, answer in REQUESTS]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("--api-key", device.api_key, "--json", report, "--plot", tmp_path / "r.png")
    printed = run("replay", "--trace", trace, "--url", device.root, *words).stdout
    found = json.loads(report.read_text())
    assert found["server"] == {"model": "smollm2", "max_model_len": 1024, "kind": "device", "engine": None}
    assert found["forced"] is True
    figures = found["figures"]
    assert figures["requests"] == {"due": 3, "completed": 2, "failed": 0, "unfinished": 0, "too_long": 1}
    assert figures["tokens"] == {"prompt": 110, "cloud": 0, "device": 15}
    assert figures["modes"] == {"device_only": 2}
    assert [one["finish_reason"] for one in found["answers"]] == ["length", "length"]
    assert "2 of 3 requests completed" in printed
    assert (tmp_path / "r.svg").exists()
    device.wait_idle()


def test_one_answer_goes_to_standard_output_and_its_timeline_into_a_picture(tmp_path):
    report = tmp_path / "a.json"
    done = run(
        "generate",
        "Count to five.",
        "--gguf",
        "demo",
        "--max-tokens",
        12,
        "--json",
        report,
        "--plot",
        tmp_path / "a.png",
    )
    found = json.loads(report.read_text())
    assert found["mode"] == "device_only"
    assert found["device_tokens"] == len(found["token_ids"]) > 0
    assert done.stdout.strip() == found["text"].strip()
    assert f"{found['device_tokens']} tokens ({found['device_tokens']} device)" in done.stderr
    assert (tmp_path / "a.png").exists()
