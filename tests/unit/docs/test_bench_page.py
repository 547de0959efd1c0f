"""docs/bench.md: its code runs, and its tables have every field of the files."""

import re
from pathlib import Path

from readme import blocks, run

from pdd_cli.demo.record import answer_record
from pdd_cli.generate.run import record
from pdd_core.planner.profiles import MeasuredCloud
from pdd_core.timeline import Timeline
from pdd_lab.bench import cloud_bench, device_bench
from pdd_lab.bench.cloud_fit import StepCost
from pdd_lab.bench.cloud_measure import CloudMeasured, Decode, Prefill
from pdd_lab.bench.cloud_plan import CloudPlan
from pdd_lab.bench.device_figures import Measured
from pdd_lab.bench.device_pass import DevicePlan, Sample
from pdd_lab.load.measuring_client import ServedModel
from pdd_lab.load.reply import Reply
from pdd_lab.replay.live_replay import Run
from pdd_lab.replay.replay_figures import Reader, answers, figures
from pdd_llamacpp_adapter.session.outcome import Mode, Outcome

PAGE = Path(__file__).parents[3] / "docs" / "bench.md"
TEXT = PAGE.read_text()


def table(name: str) -> set[str]:
    """Every word in backticks in the table whose head names `name`."""
    body = TEXT.split(f"| `{name}` | |\n")[1].split("\n\n")[0]
    return set(re.findall(r"`(\w+)`", body))


def test_the_code_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(PAGE) == 3


def test_commands_are_named_as_they_are():
    commands = [block.split()[:3] for block in blocks(PAGE, "bash")]
    assert commands == [
        ["pdd-device", "bench", "device"],
        ["pdd-device", "bench", "cloud"],
        ["pdd-device", "replay", "--trace"],
        ["pdd-device", "replay", "--trace"],
        ["pdd-device", "generate", '"Why'],
    ]


def test_the_bounds_are_the_codes():
    plan = CloudPlan()
    for text in (
        f"{plan.most_tokens:,}",
        f"{round(plan.tokens, -3):,} tokens by default",
        f"{plan.round_trips} times",
    ):
        assert text in TEXT, text


def test_a_devices_file_is_described(tmp_path):
    gguf = tmp_path / "m.gguf"
    gguf.write_bytes(b"GGUF")
    measured = Measured([(1, [Sample("prefill", 1, 1, 1.0), Sample("decode", 2, 1, 1.0)])])
    plan = DevicePlan.up_to(128, threads=(1,), reps=1)
    found = device_bench.record(device_bench.DeviceBench(), plan, measured, gguf, {})
    names = {*found, *found["rates"][0], *found["model"]} - {"schema"}
    assert names <= table("bench device")


def test_a_clouds_file_is_described():
    measured = CloudMeasured([0.1], [Prefill(1, 1.0)], [Decode(1, 1, 1.0, 1.0)])
    profile = MeasuredCloud(
        name="n", model="m", base_s=1, per_prefill_token_s=1, per_sequence_s=1, per_context_token_s=1, kv_tokens=1,
        max_num_seqs=1, max_num_batched_tokens=1, rtt_s=1, jitter_s=1,
    )  # fmt: skip
    cost = StepCost(1, 1, 1, 1, 1, 1, 0.1, 0.2)
    facts = cloud_bench._Found(served=ServedModel("m", 1, None, device=False))
    found = cloud_bench.record(cloud_bench.CloudBench(url="http://host"), facts, measured, cost, profile)
    names = {*found, *found["client"], *found["load"], *found["prefill"][0], *found["decode"][0]} - {"schema"}
    assert names | {"mean_error", "max_error"} <= table("bench cloud")


def test_a_replays_file_is_described():
    one = Reply(index=0, due=0.0, prompt_tokens=1, sent=0.0, token_times=[1.0], finished=1.0)
    made, reader = Run(replies=[one]), Reader(20.0, 0.5)
    found = figures(made, reader)
    assert {*found, *found["requests"], *found["tokens"], *found["stalls"], *found["qoe"]} <= table("figures")
    assert {*found["ttft_s"]} <= table("figures")
    assert set(answers(made, reader)[0]) <= table("replay")


def test_an_answers_file_is_described():
    outcome = Outcome(Mode.HANDOFF, "stop", Timeline(), 1, None, None, None, None, 0, None, None, 0)
    assert {*record(outcome, "m"), *answer_record(outcome)} - {"schema"} <= table("generate")
