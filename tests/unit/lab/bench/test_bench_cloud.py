from __future__ import annotations

import io
import json
import signal
import subprocess
import time

import pytest
from command_line import PDD
from load_server import METRICS, FakeServer, serving
from rich.console import Console
from typer.testing import CliRunner

from pdd_cli.main import app
from pdd_core.errors import CloudRefused, ConfigurationError
from pdd_core.planner.profiles import MeasuredCloud
from pdd_lab.bench import cloud_measure
from pdd_lab.bench.cloud_bench import CloudBench, cache_config, run_cloud
from pdd_lab.bench.cloud_fit import StepCost, fit
from pdd_lab.bench.cloud_measure import CloudMeasured, Decode, Prefill, together
from pdd_lab.bench.cloud_plan import CloudPlan
from pdd_lab.load.reply import Reply

SMALL = CloudPlan(lengths=(16, 64), widths=(1, 2), contexts=(8, 32), answer_tokens=16, reps=2, round_trips=3)


def benched(fake: FakeServer, tmp_path, *, plan: CloudPlan = SMALL, **options):
    """Measure `fake`, each token at the time that the server means: a busy machine may send all at once."""
    out = io.StringIO()
    wanted = CloudBench(url=fake.url, plan=plan, **options)
    console = Console(file=out, width=200)
    answered = cloud_measure._answered

    async def on_time(client, prompts, max_tokens):
        replies = await answered(client, prompts, max_tokens)
        for reply in replies:
            begin = replies[0].due + fake.prefill_s_per_token * reply.prompt_tokens + fake.gap
            reply.due = replies[0].due
            reply.token_times = [begin + index * fake.gap for index in range(len(reply.token_times))]
        return replies

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cloud_measure, "_answered", on_time)
        run_cloud(wanted, out=tmp_path / "cloud.json", json_path=tmp_path / "all.json", plot=None, console=console)
    return (
        MeasuredCloud.load(tmp_path / "cloud.json"),
        json.loads((tmp_path / "all.json").read_text()),
        out.getvalue(),
    )


def test_a_server_is_measured_into_a_profile_figures_and_a_picture(tmp_path) -> None:
    with serving(FakeServer(gap=0.002, prefill_s_per_token=0.0005, plugin=True)) as fake:
        profile, report, printed = benched(fake, tmp_path, max_num_seqs=32, max_num_batched_tokens=512)
    assert (profile.model, profile.name) == ("fake", "fake on vllm 0.0")
    assert (profile.kv_tokens, profile.block_size) == (8192, 16)
    assert (profile.max_num_seqs, profile.max_num_batched_tokens, profile.refines) == (32, 512, True)
    assert profile.rtt_s > 0
    assert report["kind"] == "cloud"
    assert [one["length"] for one in report["prefill"]] == [16, 64, 16, 64]
    assert [one["seconds"] for one in report["prefill"]] == pytest.approx([0.010, 0.034] * 2, abs=1e-6)
    assert report["unusable"] == 0
    assert [one["tpot_s"] for one in report["decode"]] == pytest.approx([0.002] * 8, abs=1e-6)
    assert "One prompt on an idle server" in printed
    assert "taken from the flags: max_num_seqs 32" in printed
    assert (tmp_path / "cloud.png").exists()
    assert (tmp_path / "cloud.svg").exists()


def test_the_load_is_the_one_that_was_planned(tmp_path) -> None:
    with serving(FakeServer(gap=0.001)) as fake:
        _, report, _ = benched(fake, tmp_path)
    asked = fake.requests[2:]  # the probe and the warm-up are not measured
    assert len(asked) == report["load"]["requests"] == SMALL.requests == 16
    assert sum(len(one["prompt"]) + one["max_tokens"] for one in asked) == report["load"]["tokens"] == SMALL.tokens
    assert fake.most_running == report["load"]["most_at_a_time"] == 2


def test_no_prompt_is_sent_twice(tmp_path) -> None:
    with serving(FakeServer(gap=0.001)) as fake:
        benched(fake, tmp_path)
    beginnings = [tuple(one["prompt"][:8]) for one in fake.requests]
    assert len(set(beginnings)) == len(beginnings)


def test_a_server_that_does_not_tell_its_cache_has_to_be_told_about(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("load_server.METRICS", "")
    with serving(FakeServer(gap=0.001)) as fake:
        with pytest.raises(ConfigurationError, match="--kv-tokens"):
            benched(fake, tmp_path)
        assert not fake.requests  # before there is any load
        assert benched(fake, tmp_path, kv_tokens=1000)[0].kv_tokens == 1000


def test_a_server_that_cannot_be_forced_is_not_measured(tmp_path) -> None:
    with serving(FakeServer(refuses=("min_tokens",))) as fake, pytest.raises(ConfigurationError, match="vLLM"):
        benched(fake, tmp_path)


def test_a_request_that_fails_ends_the_measurement(tmp_path) -> None:
    with serving(FakeServer(fails={4: "429"})) as fake, pytest.raises(CloudRefused, match="busy"):
        benched(fake, tmp_path)
    assert not (tmp_path / "cloud.json").exists()


def test_what_the_server_cannot_hold_is_left_out() -> None:
    plan = CloudPlan(lengths=(100, 200, 1000), contexts=(64, 768))
    assert plan.within(None) == plan
    assert plan.within(600).lengths == (100, 200)
    assert plan.within(600).contexts == (64,)
    with pytest.raises(ConfigurationError):
        plan.within(50)


@pytest.mark.parametrize("changes", [{"lengths": (64,)}, {"widths": (4,)}, {"contexts": ()}, {"reps": 0}])
def test_too_little_to_tell_the_costs_apart_is_refused_before_there_is_any_load(changes) -> None:
    with pytest.raises(ConfigurationError, match=r"two --lengths|positive"):
        CloudPlan(**changes)


def test_the_load_has_a_bound() -> None:
    with pytest.raises(ConfigurationError, match=r"--most-tokens allows 1,000"):
        CloudPlan(most_tokens=1000)
    assert CloudPlan().tokens < 53_000  # as --help says


def test_help_states_the_bound() -> None:
    text = " ".join(CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "cloud", "--help"]).output.split())
    assert "never more than --most-tokens" in text


COST = StepCost(0.004, 0.0003, 0.001, 0.000002, 0.002, 4e-8, 0, 0)


def synthetic(noise: float = 1.0) -> CloudMeasured:
    measured = CloudMeasured(round_trips=[0.001, 0.002, 0.003])
    for length in (128, 512, 1024, 3000):
        for factor in (1.0, noise, 1.0):
            measured.prefill.append(Prefill(length, factor * COST.prefill_s(length, 2048) + 0.002))
    for width in (1, 2, 4, 8):
        for prompt in (64, 768):
            held = width * (prompt + 16.5)
            for factor in (1.0, 1.0, noise):
                measured.decode.append(Decode(width, prompt, held, factor * COST.decode_s(width, held)))
    return measured


@pytest.mark.parametrize("noise", [1.0, 5.0])
def test_known_costs_are_found_also_where_one_repetition_in_three_was_disturbed(noise: float) -> None:
    found = fit(synthetic(noise), most_batched=2048)
    for name in MeasuredCloud.model_fields.keys() & StepCost.__dataclass_fields__.keys():
        assert getattr(found, name) == pytest.approx(getattr(COST, name), rel=1e-3), name
    assert found.max_error < 1e-6


def test_no_cost_is_below_zero() -> None:
    measured = synthetic()
    measured.decode = [Decode(one.width, one.prompt_tokens, one.context_tokens, 0.01) for one in measured.decode]
    found = fit(measured, most_batched=2048)
    assert min(found.per_sequence_s, found.per_context_token_s, found.base_s, found.per_request_s) >= 0
    assert found.max_error > 0


def test_too_little_is_not_fitted() -> None:
    measured = synthetic()
    measured.decode = [one for one in measured.decode if one.width == 1]
    with pytest.raises(ConfigurationError, match="two widths"):
        fit(measured, most_batched=2048)


def reply(*times: float, prompt: int = 10) -> Reply:
    return Reply(index=0, due=0.0, prompt_tokens=prompt, token_times=list(times))


def test_only_the_time_in_which_all_answers_were_under_way_counts() -> None:
    early = reply(0, 9, *range(10, 20))  # waited for the other's prompt
    late = reply(*range(10, 26))  # alone from 19 on
    found = together([early, late])
    assert found.tpot_s == 1.0
    assert found.width == 2
    # both hold 10 tokens of prompt; early's tokens 3 to 12 and late's 1 to 10 lie within
    assert found.context_tokens == pytest.approx(10 + 7.5 + 10 + 5.5)


def test_answers_that_hardly_met_are_no_measurement() -> None:
    assert together([reply(0, 1, 2, 3), reply(2, 3, 4, 5)]) is None


def test_tokens_that_came_all_at_once_are_no_measurement() -> None:
    assert together([reply(*[1.0] * 16, 2.0)]) is None
    assert together([reply(*range(10), 10.0, 10.0)]).tpot_s == 1.0


def test_jitter_ignores_one_slow_round_trip() -> None:
    measured = CloudMeasured(round_trips=[0.010, 0.011, 0.009, 0.010, 5.0])
    assert measured.rtt_s == 0.010
    assert measured.jitter_s == pytest.approx(0.001 * 1.4826)


def test_the_cache_is_read_from_vllms_metrics() -> None:
    assert cache_config(METRICS) == (8192, 16)
    assert cache_config('vllm:cache_config_info{block_size="32",num_gpu_blocks="None"} 1') == (None, 32)
    assert cache_config("") == (None, 16)


def test_ctrl_c_leaves_no_request_running_and_writes_nothing(tmp_path) -> None:
    # a probe, a warm-up, two prompts and two answers go alone; of the next four answers no token comes
    with serving(FakeServer(stalls_after=6)) as fake:
        argv = ["bench", "cloud", "--url", fake.url, "--lengths", "16,64", "--widths", "1,4"]
        argv += ["--out", str(tmp_path / "cloud.json")]
        process = subprocess.Popen(
            [*PDD, *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        until(lambda: fake.running == 4)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        until(lambda: fake.running == 0)
        assert fake.gone == 4
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert not (tmp_path / "cloud.json").exists()


def until(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("never happened")
