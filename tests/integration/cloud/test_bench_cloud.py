"""`bench cloud` against the real vLLM, with a small load."""

import json
import subprocess
import sys

from cloud_support import KEY

from pdd_core.planner.profiles import MeasuredCloud


def test_the_cloud_is_measured_into_a_profile(cloud, tmp_path):
    words = ("--url", cloud.base_url, "--api-key", KEY, "--lengths", "32,256", "--widths", "1,2", "--reps", "1")
    files = ("--out", str(tmp_path / "cloud.json"), "--json", str(tmp_path / "all.json"))
    command = [sys.executable, "-m", "pdd_cli.main", "bench", "cloud", *words, *files, "--max-num-seqs", "8"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout + done.stderr
    profile = MeasuredCloud.load(tmp_path / "cloud.json")
    report = json.loads((tmp_path / "all.json").read_text())
    assert profile.model == "smollm2"
    assert profile.refines is True
    assert profile.max_num_seqs == 8
    assert profile.kv_tokens >= 8192
    assert report["engine"].startswith("vllm ")
    assert [one["length"] for one in report["prefill"]] == [32, 256]
    assert report["load"]["most_at_a_time"] == 2
