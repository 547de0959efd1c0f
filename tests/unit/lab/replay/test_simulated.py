from __future__ import annotations

import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from typer.testing import CliRunner

from pdd_cli.main import app
from pdd_cli.plots.style import figure
from pdd_core.errors import ConfigurationError
from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice, RatePoint
from pdd_core.timeline import Source
from pdd_lab.load.reply import Reply
from pdd_lab.replay.drawn_answer import plotted, simulated_median
from pdd_lab.replay.live_replay import Run
from pdd_lab.replay.replay_figures import Reader, answers, figures
from pdd_lab.replay.replay_plots import _draw_waits
from pdd_lab.replay.run import Replay, run_replay
from pdd_lab.replay.simulated import _weighted, as_answers, as_figures, simulated
from pdd_lab.traces import Trace

READER = Reader(rate=20.0, ttft_s=0.5)
DEVICE = MeasuredDevice(
    name="phone", model="m", n_ctx=8192, spread=0.0,
    prefill_tps=(RatePoint(at=0, value=1000.0),), decode_tps=(RatePoint(at=0, value=30.0),),
)  # fmt: skip
CLOUD = MeasuredCloud(
    name="cloud", model="m", base_s=0.01, per_prefill_token_s=1e-5, per_sequence_s=0, per_context_token_s=0,
    kv_tokens=100_000, max_num_seqs=64, max_num_batched_tokens=4096, rtt_s=0.0, jitter_s=0.0,
)  # fmt: skip
TRACE = Trace("t", np.arange(40) * 0.5, np.full(40, 1000), np.full(40, 200))


def made(policy: str, trace: Trace = TRACE, cloud: MeasuredCloud = CLOUD):
    return simulated(trace, DEVICE, cloud, READER, policy=policy, seed=0)


def test_with_plain_serving_the_cloud_makes_all_of_every_answer() -> None:
    found = as_figures(made("plain"), READER)
    assert found["tokens"] == {"prompt": 40_000, "cloud": 8000, "device": 0}
    assert found["modes"] == {"cloud_only": 40}
    assert found["stalls"]["answers"] == 0
    assert found["gap_s"]["max"] == pytest.approx(0.05)
    # the last of 40 begins after 19.5 s, and is shown at 20 tokens a second
    assert found["seconds"] == pytest.approx(19.5 + found["ttft_s"]["p50"] + 199 * 0.05, rel=1e-3)


def test_a_budget_that_is_too_small_stalls_and_the_stall_is_the_longest_gap() -> None:
    found = as_figures(made("fixed_2"), READER)
    rows = as_answers(made("fixed_2"))
    assert found["stalls"] == {"answers": 40, "share": 1.0}
    assert found["tokens"]["cloud"] == 80
    assert rows[0]["longest_gap_s"] == found["gap_s"]["max"] > 0.5
    assert rows[0]["qoe"] < 1


def slower(**changes) -> MeasuredDevice:
    return DEVICE.model_copy(update={name: (RatePoint(at=0, value=value),) for name, value in changes.items()})


@pytest.mark.parametrize(
    "policy", ["plain", "planner", "fixed_2", *(f"fixed_{n}" for n in range(14, 26)), "fixed_64"]
)
@pytest.mark.parametrize(
    ("device", "cloud"),
    [
        (DEVICE, CLOUD),
        (slower(decode_tps=14.0), CLOUD),  # shown more slowly than read, yet within what a reader bears
        (slower(decode_tps=13.0), CLOUD),  # and beyond
        (slower(prefill_tps=700.0), CLOUD.model_copy(update={"base_s": 0.06})),
        (DEVICE, CLOUD.model_copy(update={"base_s": 0.08})),
        (slower(prefill_tps=1e6, decode_tps=100.0), CLOUD),
    ],
)
def test_every_answer_can_be_drawn_and_stalls_as_a_live_one_would(policy, device, cloud) -> None:
    one = simulated(TRACE.first(5), device, cloud, READER, policy=policy, seed=0)
    stalled = 0
    for index, row in enumerate(as_answers(one)):
        drawn = plotted(one, index, READER)
        seen = Reply(index=index, due=0.0, prompt_tokens=1, token_times=list(drawn.shown_at))
        stalled += READER.stalled(seen)
        assert (drawn.source.count(Source.CLOUD), drawn.source.count(Source.DEVICE)) == (
            row["cloud_tokens"], row["device_tokens"],
        )  # fmt: skip
        assert drawn.shown_at[0] == pytest.approx(row["ttft_s"], abs=1e-5)
        assert drawn.shown_at[-1] == pytest.approx(row["seconds"], abs=1e-5)
        assert max(np.diff(drawn.shown_at)) == pytest.approx(row["longest_gap_s"], abs=1e-5)
        assert len(drawn.received_at) == 200
        assert (np.array(drawn.received_at) <= np.array(drawn.shown_at) + 1e-9).all()
        assert (np.diff(drawn.received_at) >= -1e-9).all()
        assert (drawn.took_over_at is None) == (row["cloud_tokens"] in (0, 200))
    assert as_figures(one, READER)["stalls"]["answers"] == stalled


def test_a_moments_lateness_is_no_stall_and_half_a_gap_more_is() -> None:
    late, stalled = [], []
    for speed in range(1000, 1300, 10):
        one = simulated(TRACE.first(2), slower(prefill_tps=speed), CLOUD, READER, policy="fixed_16", seed=0)
        late.append(float(one.evaluation.outcomes.lateness_s.max()))
        stalled.append(as_figures(one, READER)["stalls"]["answers"] > 0)
    assert stalled == [one > 0.025 for one in late]
    assert any(0 < one <= 0.025 for one in late)
    assert any(stalled)


def test_the_answer_with_the_median_wait_is_drawn() -> None:
    drawn = simulated_median(made("fixed_16"), READER)
    rows = as_answers(made("fixed_16"))
    assert drawn.shown_at[0] == pytest.approx(sorted(row["ttft_s"] for row in rows)[19], abs=1e-5)
    assert drawn.caught_up_at == pytest.approx(1.0)  # 1000 tokens at 1000 a second
    assert drawn.took_over_at == drawn.received_at[16]


def test_the_planner_hands_off_without_a_stall() -> None:
    found = as_figures(made("planner"), READER)
    assert found["modes"]["handoff"] > 0
    assert found["stalls"]["share"] <= 0.01
    assert found["tokens"]["cloud"] < 8000


def test_a_request_that_the_cloud_can_never_hold_is_too_long() -> None:
    small = CLOUD.model_copy(update={"kv_tokens": 1600})
    mixed = Trace("t", np.arange(4.0), np.array([1000, 2000, 1000, 3000]), np.full(4, 200))
    found = as_figures(made("plain", mixed, small), READER)
    assert found["requests"] == {"due": 4, "completed": 2, "failed": 0, "unfinished": 0, "too_long": 2}
    assert found["tokens"]["prompt"] == 2000
    assert as_answers(made("plain", mixed, small))[1]["ttft_s"] is None


def test_a_cloud_that_holds_none_of_the_prompts_is_refused() -> None:
    for tokens in (640, 1100):  # the prompt does not fit, or no whole answer does
        with pytest.raises(ConfigurationError, match="fewer than the shortest request"):
            made("plain", cloud=CLOUD.model_copy(update={"kv_tokens": tokens}))


def test_a_cloud_whose_steps_take_no_time_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="no step of it takes any time"):
        made("plain", cloud=CLOUD.model_copy(update={"base_s": 0.0, "per_prefill_token_s": 0.0}))


@pytest.mark.parametrize("policy", ["best", "fixed_", "fixed_0", "fixed_x", "", "fixed_99999999999999999999"])
def test_an_unknown_policy_is_refused(policy: str) -> None:
    with pytest.raises(ConfigurationError, match="--policy"):
        made(policy)


def test_the_report_has_the_names_of_a_live_one(tmp_path) -> None:
    one = made("fixed_16")
    assert as_figures(one, READER).keys() == figures(Run(), READER).keys()
    live = answers(Run(replies=[Reply(index=0, due=0.0, prompt_tokens=1)]), READER)
    assert as_answers(one)[0].keys() == live[0].keys()


def test_a_file_is_replayed_against_profiles(tmp_path) -> None:
    trace = tmp_path / "t.jsonl"
    row = {"prompt_tokens": 1000, "output_tokens": 100}
    trace.write_text("".join(json.dumps({"arrival_s": at, **row}) + "\n" for at in range(5)))
    DEVICE.save(tmp_path / "d.json")
    CLOUD.save(tmp_path / "c.json")
    out = io.StringIO()
    wanted = Replay(
        trace=str(trace),
        device=str(tmp_path / "d.json"),
        cloud=str(tmp_path / "c.json"),
        policy="fixed_16",
        reader=READER,
    )
    run_replay(
        wanted, json_path=tmp_path / "r.json", plot=tmp_path / "r.svg", console=Console(file=out, width=200)
    )
    report = json.loads((tmp_path / "r.json").read_text())
    assert (report["kind"], report["device"], report["cloud"], report["policy"]) == (
        "simulated", "phone", "cloud", "fixed_16",
    )  # fmt: skip
    assert report["figures"]["requests"]["completed"] == 5
    assert "5 of 5 requests completed" in out.getvalue()
    assert (tmp_path / "r.png").exists()
    for words in ("Median wait: 100 tokens", "received, or made on the device", "shown, made by the device"):
        assert words in (tmp_path / "r.svg").read_text()


@pytest.mark.parametrize(
    "flags",
    [(), ("--url", "http://h", "--simulate"), ("--simulate", "--device", "d"), ("--simulate", "--format", "x")],
)
def test_what_to_replay_against_has_to_be_said_once(tmp_path, flags) -> None:
    done = CliRunner().invoke(app, ["replay", "--trace", str(tmp_path / "t"), *flags])
    assert done.exit_code != 0
    assert done.exception is not None


def test_percentiles_count_each_value_as_often_as_it_stands_for() -> None:
    values, counts = np.array([3.0, 1.0, 2.0]), np.array([1.0, 98.0, 1.0])
    assert _weighted(values, counts) == {"p50": 1.0, "p99": 2.0, "max": 3.0}
    assert _weighted(values, np.zeros(3))["p50"] is None


def test_many_requests_are_drawn_as_medians_and_few_one_by_one(tmp_path) -> None:
    many = Trace("t", np.arange(2000) * 0.5, np.full(2000, 100), np.full(2000, 5))
    for trace, words in ((TRACE, "request by request"), (many, "2,000 requests")):
        _, [axes] = figure()
        _draw_waits(axes, as_answers(made("plain", trace)))
        assert words in axes.get_title(loc="left")
    assert axes.get_legend_handles_labels()[1] == ["median", "up to the 99th percentile"]


@given(st.lists(st.tuples(st.floats(0, 9), st.integers(0, 5)), max_size=30))
def test_weighted_percentiles_are_those_of_the_repeated_values(pairs) -> None:
    values, counts = (np.array([pair[at] for pair in pairs], dtype=float) for at in (0, 1))
    repeated = np.repeat(values, counts.astype(int))
    found = _weighted(values, counts)
    if not repeated.size:
        assert found == {"p50": None, "p99": None, "max": None}
    else:
        p50, p99 = np.percentile(repeated, (50, 99), method="inverted_cdf")
        assert (found["p50"], found["p99"]) == (pytest.approx(p50, abs=1e-5), pytest.approx(p99, abs=1e-5))
