from __future__ import annotations

import io
import json
import math
import os
import signal
import subprocess
import time

import pytest
from command_line import PDD
from load_server import FakeServer, serving
from rich.console import Console

from pdd_core.errors import CloudUnreachable, ConfigurationError, InvalidTrace
from pdd_core.timeline import Source
from pdd_lab.load.reply import Reply
from pdd_lab.replay.drawn_answer import live_median, sources
from pdd_lab.replay.live_replay import Run
from pdd_lab.replay.replay_figures import Reader, answers, figures
from pdd_lab.replay.replay_table import lines
from pdd_lab.replay.run import Replay, run_replay

READER = Reader(rate=10.0, ttft_s=0.5)


@pytest.fixture
def trace_file(tmp_path):
    def write(*rows, **more):
        path = tmp_path / "trace.jsonl"
        path.write_text(
            "".join(
                json.dumps({"arrival_s": at, "prompt_tokens": prompt, "output_tokens": output, **more}) + "\n"
                for at, prompt, output in rows
            )
        )
        return path

    return write


def replayed(fake: FakeServer, path, tmp_path, *, plot=None, **changes):
    out = io.StringIO()
    wanted = Replay(trace=str(path), url=fake.url, reader=READER, **changes)
    run_replay(wanted, json_path=tmp_path / "r.json", plot=plot, console=Console(file=out, width=200))
    return json.loads((tmp_path / "r.json").read_text()), out.getvalue()


def test_every_request_is_sent_as_the_trace_has_it(trace_file, tmp_path) -> None:
    path = trace_file((0, 5, 3), (1, 7, 2), (2, 9, 4))
    with serving(FakeServer()) as fake:
        report, printed = replayed(fake, path, tmp_path, plot=tmp_path / "r.png", speedup=100)
    sent = fake.requests[1:]  # the first is the probe
    assert [(len(one["prompt"]), one["max_tokens"]) for one in sent] == [(5, 3), (7, 2), (9, 4)]
    found = report["figures"]
    assert found["requests"] == {"due": 3, "completed": 3, "failed": 0, "unfinished": 0, "too_long": 0}
    assert found["tokens"] == {"prompt": 21, "cloud": 9, "device": 0}
    assert report["trace"] == {
        "name": "trace.jsonl",
        "read_as": "jsonl, timestamps in s",
        "requests": 3,
        "seconds": 0.02,
    }
    assert "read as jsonl, timestamps in s" in printed
    assert report["server"]["model"] == "fake"
    assert report["forced"] is True
    assert [one["due_s"] for one in report["answers"]] == [0.0, 0.01, 0.02]
    assert "3 of 3 requests completed" in printed
    assert "arrived here, and shown at once" in (tmp_path / "r.svg").read_text()


def test_arrivals_do_not_wait_for_answers(trace_file, tmp_path) -> None:
    path = trace_file(*[(0.01 * index, 4, 20) for index in range(6)])
    with serving(FakeServer(together=6)) as fake:
        report, _ = replayed(fake, path, tmp_path)
    assert fake.most_running == 6
    assert report["figures"]["requests"]["completed"] == 6


def test_a_bound_on_concurrency_holds_and_what_waits_is_late(trace_file, tmp_path) -> None:
    path = trace_file(*[(0, 4, 5)] * 4)
    with serving(FakeServer(gap=0.02)) as fake:
        report, printed = replayed(fake, path, tmp_path, concurrency=1)
    assert fake.most_running == 1
    rows = report["answers"]
    assert rows[0]["late_s"] < rows[1]["late_s"] < rows[2]["late_s"] < rows[3]["late_s"] < rows[3]["ttft_s"]
    assert report["figures"]["late"]["requests"] >= 3
    assert "were sent late" in printed


def test_requests_that_the_server_cannot_hold_are_counted_and_not_sent(trace_file, tmp_path) -> None:
    path = trace_file((0, 5, 3), (0, 90, 30))
    with serving(FakeServer(max_model_len=100)) as fake:
        report, printed = replayed(fake, path, tmp_path)
    assert report["figures"]["requests"] == {
        "due": 2, "completed": 1, "failed": 0, "unfinished": 0, "too_long": 1,
    }  # fmt: skip
    assert len(fake.requests) == 2
    assert "1 too long for the server's context, not sent" in printed


def test_errors_are_counted_by_type_and_the_rest_goes_on(trace_file, tmp_path) -> None:
    path = trace_file(*[(0.02 * index, 4, 3) for index in range(5)])
    with serving(FakeServer(fails={2: "429", 3: "break", 4: "429"})) as fake:
        report, printed = replayed(fake, path, tmp_path, plot=tmp_path / "r.png")
    assert report["figures"]["errors"] == {"HTTP 429": 2, "broke off": 1}
    assert report["figures"]["requests"]["completed"] == 2
    assert "2 times: HTTP 429" in printed


def test_a_server_that_does_not_force_lengths_is_said_to(trace_file, tmp_path) -> None:
    with serving(FakeServer(refuses=("ignore_eos",))) as fake:
        report, printed = replayed(fake, trace_file((0, 4, 3)), tmp_path)
    assert report["forced"] is False
    assert "does not take ignore_eos" in printed


def test_common_beginnings_are_sent(tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    rows = (
        {"arrival_s": at, "prompt_tokens": 9, "output_tokens": 1, "prefix_hashes": [7, last], "block_tokens": 5}
        for at, last in ((0, 1), (0.05, 2))
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(FakeServer()) as fake:
        replayed(fake, path, tmp_path)
    first, second = (one["prompt"] for one in fake.requests[1:])
    assert first[:5] == second[:5]
    assert first[5:] != second[5:]


def test_only_the_first_requests_are_sent_with_a_limit(trace_file, tmp_path) -> None:
    with serving(FakeServer()) as fake:
        report, _ = replayed(fake, trace_file(*[(0, 4, 1)] * 5), tmp_path, limit=2)
    assert report["figures"]["requests"]["due"] == 2


def test_a_server_that_is_not_there_is_an_error_and_no_report(trace_file, tmp_path) -> None:
    with serving(FakeServer()) as fake:
        pass
    with pytest.raises(CloudUnreachable):
        replayed(fake, trace_file((0, 4, 1)), tmp_path)
    assert not (tmp_path / "r.json").exists()


def test_a_malformed_trace_is_an_error_with_its_line(tmp_path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"arrival_s": 0, "prompt_tokens": 1, "output_tokens": 1}\n{"arrival_s": "x"}\n')
    with pytest.raises(InvalidTrace, match="2"):
        run_replay(
            Replay(trace=str(path), url="http://host", reader=READER), json_path=None, plot=None, console=Console()
        )


@pytest.mark.parametrize(
    ("rate", "ttft", "flag"),
    [(0, 0.5, "--rate"), (-5, 0.5, "--rate"), (math.nan, 0.5, "--rate"), (math.inf, 0.5, "--rate"),
     (20, -1, "--ttft"), (20, math.nan, "--ttft"), (20, math.inf, "--ttft")],
)  # fmt: skip
def test_a_reader_who_is_none_is_refused(rate: float, ttft: float, flag: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{flag} must be"):
        Reader(rate, ttft)


@pytest.mark.parametrize("plot", [True, False])
def test_a_file_that_cannot_be_written_is_found_out_before_the_work(trace_file, tmp_path, plot: bool) -> None:
    (tmp_path / "file").write_text("")
    bad = tmp_path / "file" / "x.png"
    with serving(FakeServer()) as fake:
        wanted = Replay(trace=str(trace_file((0, 4, 1))), url=fake.url, reader=READER)
        with pytest.raises(ConfigurationError, match="cannot be written"):
            run_replay(
                wanted, json_path=None if plot else bad, plot=bad if plot else None, console=Console(quiet=True)
            )
        assert not fake.requests


@pytest.mark.parametrize("speedup", [0, -1, math.nan, math.inf, 1e-308])
def test_a_speed_that_is_none_is_refused(tmp_path, speedup: float) -> None:
    with pytest.raises(ConfigurationError, match="--speedup"):
        Replay(trace="chat", url="http://host", reader=READER, speedup=speedup)


def test_ctrl_c_stops_every_request_and_reports_what_there_is(trace_file, tmp_path) -> None:
    path = trace_file((0, 4, 2), *[(0.1, 4, 2000)] * 3)
    with serving(FakeServer(gap=0.02)) as fake:
        report = tmp_path / "r.json"
        argv = ["replay", "--trace", str(path), "--url", fake.url, "--json", str(report)]
        process = subprocess.Popen(
            [*PDD, *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # all four are under way, and the first is complete: the probe is the one that was complete before
        until(lambda: len(fake.requests) == 5 and fake.running == 3)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=60)
        until(lambda: fake.running == 0)
        assert fake.gone == 3
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "3 not finished when it was interrupted" in printed
    found = json.loads(report.read_text())
    assert found["interrupted"] is True
    assert found["figures"]["requests"]["unfinished"] == 3
    assert found["figures"]["requests"]["completed"] == 1


def until(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError(f"never happened, pid {os.getpid()}")


def reply(*times: float, index: int = 0, due: float = 100.0, **changes) -> Reply:
    made = Reply(index=index, due=due, prompt_tokens=10, sent=due, token_times=list(times))
    made.finished, made.finish_reason = (times[-1], "length") if times else (None, None)
    for name, value in changes.items():
        setattr(made, name, value)
    return made


def test_the_figures_are_the_definitions() -> None:
    run = Run(begun=100.0)
    run.replies = [
        reply(100.5, 100.6, 100.7),  # as the reader expects
        reply(101.5, 101.6, 103.6, due=101.0, index=1),  # 2 s within the answer
    ]
    found = figures(run, READER)
    assert found["requests_per_s"] == pytest.approx(2 / 3.6, rel=1e-4)
    assert found["output_tokens_per_s"] == pytest.approx(6 / 3.6, rel=1e-4)
    assert found["ttft_s"]["p50"] == pytest.approx(0.5)
    assert found["gap_s"] == {"p50": 0.1, "p99": pytest.approx(1.943), "max": pytest.approx(2.0)}
    assert found["stalls"] == {"answers": 1, "share": 0.5}
    assert found["modes"] == {"cloud_only": 2}
    assert found["qoe"]["p50"] < 1
    rows = answers(run, READER)
    assert rows[0]["qoe"] == 1.0
    assert rows[1]["longest_gap_s"] == pytest.approx(2.0)


def test_nothing_at_all_has_figures_without_numbers() -> None:
    run = Run(begun=1.0)
    found = figures(run, READER)
    assert found["requests_per_s"] is found["ttft_s"]["p99"] is found["qoe"]["mean"] is None
    report = {"figures": found, "trace": {"name": "t"}, "speedup": 1.0}
    assert "0 of 0 requests completed" in "\n".join(lines(report))
    assert live_median(run, READER) is None


def test_the_answer_that_is_drawn_is_the_one_with_the_median_wait() -> None:
    run = Run(begun=0.0)
    told = {"mode": "handoff", "tokens": {"cloud": 1, "device": 2}, "took_over_s": 0.4, "caught_up_s": 0.3}
    run.replies = [reply(101.0), reply(102.0, 102.1, 102.2, index=1, pdd=told), reply(109.0, index=2)]
    drawn = live_median(run, READER)
    assert drawn.shown_at == drawn.received_at == pytest.approx([2.0, 2.1, 2.2])
    assert drawn.source == [Source.CLOUD, Source.DEVICE, Source.DEVICE]
    assert drawn.took_over_at == 0.4


def test_tokens_without_text_are_counted_and_not_drawn() -> None:
    told = {"mode": "handoff", "tokens": {"cloud": 2, "device": 3}}
    one = reply(101.0, 102.0, 103.0, pdd=told, usage_tokens=5)
    assert one.tokens == 5
    assert sources(one) == [Source.CLOUD, Source.CLOUD, Source.DEVICE]
