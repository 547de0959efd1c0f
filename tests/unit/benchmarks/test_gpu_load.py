"""The offline benchmark's shortcut: a window of seconds gives what minutes would, on an engine of known speed."""

import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

GPU = Path(__file__).parents[3] / "benchmarks" / "gpu"


@pytest.fixture
def bench(monkeypatch):
    """The benchmark's modules, which are scripts beside each other, with as much of vLLM as they touch."""
    vllm, inputs, params = (ModuleType(name) for name in ("vllm", "vllm.inputs", "vllm.sampling_params"))
    vllm.SamplingParams = SimpleNamespace
    inputs.tokens_input = lambda ids: {"type": "token", "prompt_token_ids": ids}
    params.RequestOutputKind = SimpleNamespace(FINAL_ONLY=2)
    for module in (vllm, inputs, params):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.syspath_prepend(str(GPU))
    before = set(sys.modules)
    import load
    import offline
    import offline_record

    yield SimpleNamespace(load=load, offline=offline, record=offline_record)
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and Path(sys.modules[name].__file__).parent == GPU:
            del sys.modules[name]


@dataclass
class Running:
    request_id: str
    prompt: int
    to_go: int
    budgeted: bool
    prefilled: int = 0
    made: int = 0


class Engine:
    """Continuous batching with chunked prefill; a step takes as long as its tokens and the context say."""

    def __init__(self, counter, limits):
        self.counter, self.limits, self.clock = counter, limits, 0.0
        self.waiting, self.running = [], []

    def add_request(self, request_id, prompt, params):
        to_go, extra = params.max_tokens, params.extra_args
        to_go = min(to_go, extra["pdd_decode_budget"]) if extra else to_go
        self.waiting.append(Running(request_id, len(prompt["prompt_token_ids"]), to_go, bool(extra)))

    def abort_request(self, request_ids):
        self.waiting, self.running = [], []

    def step(self):
        room, prefill, decode = self.limits.max_num_batched_tokens, 0, 0
        used = sum(one.prefilled + one.made for one in self.running)
        while (
            self.waiting
            and len(self.running) < self.limits.max_num_seqs
            and used + self.waiting[0].prompt < self.limits.kv_tokens
            and sum(one.prompt - one.prefilled for one in self.running) + len(self.running) < room
        ):
            used += self.waiting[0].prompt
            self.running.append(self.waiting.pop(0))
        for one in self.running:
            if one.prefilled == one.prompt:
                room, decode, one.made = room - 1, decode + 1, one.made + 1
        for one in self.running:
            if one.prefilled < one.prompt:
                take = min(room, one.prompt - one.prefilled)
                room, prefill, one.prefilled = room - take, prefill + take, one.prefilled + take
                one.made += one.prefilled == one.prompt
        context = sum(one.prefilled + one.made for one in self.running)
        self.clock += max(0.004, prefill / 44_000) + 30e-6 * decode + 26e-9 * context
        self.counter.steps += 1
        self.counter.tokens += sum(one.made > 0 for one in self.running)
        done = [one for one in self.running if one.made >= one.to_go]
        self.running = [one for one in self.running if one.made < one.to_go]
        self.counter.running += len(self.running)
        return [self.output(one) for one in done]

    def output(self, one):
        answer = SimpleNamespace(
            token_ids=[0] * one.made, finish_reason="length", stop_reason="pdd_handoff" if one.budgeted else None
        )
        return SimpleNamespace(request_id=one.request_id, finished=True, outputs=[answer])


def measured(bench, monkeypatch, cell, limits, seconds):
    counter = bench.load.Counter()
    engine = Engine(counter, limits)
    clock = SimpleNamespace(perf_counter=lambda: engine.clock, thread_time=lambda: 0.0)
    monkeypatch.setattr(bench.load, "time", clock)
    load = bench.load.Load(engine, counter, limits, vocab_size=32_000)
    return load.measure(cell, seconds=seconds)


@pytest.mark.parametrize(
    ("prompt", "output", "end", "tokens"),
    [
        (128, 512, "full", 0),  # the KV cache is what binds
        (1024, 128, "full", 0),
        (128, 512, "budget", 3),  # prefill binds
        (128, 512, "cap", 16),
        (1024, 512, "budget", 16),
        (64, 512, "budget", 48),  # the number of sequences binds
    ],
)
def test_a_window_of_seconds_gives_what_minutes_would(bench, monkeypatch, prompt, output, end, tokens):
    limits = bench.load.Limits(max_num_seqs=256, max_num_batched_tokens=2048, kv_tokens=60_000)
    cell = bench.load.Cell(prompt, output, 0, end, tokens)
    short = measured(bench, monkeypatch, cell, limits, 3)
    long = measured(bench, monkeypatch, cell, limits, 40)
    assert short["requests_per_s"] == pytest.approx(long["requests_per_s"], rel=0.03)
    assert long["finished_per_s"] == pytest.approx(long["requests_per_s"], rel=0.03)


def test_a_budget_that_did_not_end_its_request_is_an_error(bench, monkeypatch):
    limits = bench.load.Limits(max_num_seqs=8, max_num_batched_tokens=512, kv_tokens=10_000)
    counter = bench.load.Counter()
    engine = Engine(counter, limits)
    plain = engine.output

    def without_reason(one):
        made = plain(one)
        made.outputs[0].stop_reason = None
        return made

    engine.output = without_reason
    load = bench.load.Load(engine, counter, limits, vocab_size=32_000)
    with pytest.raises(RuntimeError, match="is the plugin's scheduler in use"):
        load.measure(bench.load.Cell(64, 100, 0, "budget", 4), seconds=1)


def test_every_round_measures_both_engines_with_the_same_numbers(bench):
    whole = bench.offline.shape("1024/512:921")
    rounds = [bench.offline.cells(whole, number) for number in range(3)]
    for wanted in rounds:
        assert wanted["plain"][0] == wanted["plugin"][0] == whole
        assert {cell.end for cell in wanted["plain"][1:]} == {"cap"}
        assert {cell.end for cell in wanted["plugin"][1:]} == {"budget"}
    caps = {cell.tokens for wanted in rounds for cell in wanted["plain"][1:]}
    budgets = {cell.tokens for wanted in rounds for cell in wanted["plugin"][1:]}
    assert caps == budgets == {1, 6, 8, 16, 21, 64}


def test_the_summary_has_the_ratios(bench):
    cell = bench.load.Cell(128, 1024)
    rows = [
        ("plain", "full", 0, 20.0), ("plugin", "full", 0, 19.9), ("plain", "full", 0, 20.2),
        ("plain", "cap", 3, 340.0), ("plugin", "budget", 3, 337.0), ("plugin", "budget", 1, 350.0),
    ]  # fmt: skip
    common = {
        "shape": cell.name, "prompt": 128, "output": 1024, "shared": 0, "warm_up": False,
        "second_half_over_first": 1.01,
    }  # fmt: skip
    [shape] = bench.record.summary(
        [{**common, "engine": e, "end": end, "tokens": n, "requests_per_s": rate} for e, end, n, rate in rows]
    )
    assert shape["plain_requests_per_s"] == pytest.approx(20.1)
    assert shape["idle_over_plain"] == pytest.approx(19.9 / 20.1)
    planned = next(row for row in shape["budgets"] if row["tokens"] == 3)
    assert planned["planner_ratios"] == ["1"]
    assert planned["of_ceiling"] == pytest.approx(337 / 350)
    assert planned["over_same_max_tokens"] == pytest.approx(337 / 340)
    assert "budget   3" in bench.record.table([shape])
    assert shape["unsteady"] == []


def row(rate, *, halves=1.0, engine="plain", end="full", tokens=0, warm_up=False):
    return {
        "shape": "128/1024", "prompt": 128, "output": 1024, "shared": 0, "engine": engine, "end": end,
        "tokens": tokens, "requests_per_s": rate, "second_half_over_first": halves, "warm_up": warm_up,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("halves", "steady"),
    [(0.949, False), (0.95, True), (1.0, True), (1.05, True), (1.051, False), (float("nan"), False)],
)
def test_a_window_is_steady_if_its_halves_give_the_same(bench, halves, steady):
    assert bench.record.is_steady(row(1.0, halves=halves)) is steady


def test_warm_ups_and_what_was_unsteady_do_not_count(bench):
    # as measured on an H200: 13.7 req/s while it was not yet steady, and 17.5
    measured = [
        row(9.0, warm_up=True), row(13.7, halves=1.4), row(17.5, halves=1.01), row(17.7, halves=0.99),
        row(336.0, engine="plugin", end="budget", tokens=3),
    ]  # fmt: skip
    [shape] = bench.record.summary(measured)
    assert shape["plain_requests_per_s"] == pytest.approx(17.6)
    assert shape["budgets"][0]["over_plain"] == pytest.approx(336 / 17.6)
    assert shape["unsteady"] == []
    assert "UNSTEADY" not in bench.record.table([shape])


def test_what_was_never_steady_is_named(bench):
    measured = [row(13.7, halves=1.4), row(15.1, halves=1.2), row(17.4, engine="plugin")]
    [shape] = bench.record.summary(measured)
    assert shape["plain_requests_per_s"] == pytest.approx(14.4)
    assert shape["unsteady"] == ["plain, full 0"]
    assert "UNSTEADY, with whatever is a ratio to it: plain, full 0" in bench.record.table([shape])


def test_a_shape_of_warm_ups_alone_is_no_result(bench):
    assert bench.record.summary([row(9.0, warm_up=True)]) == []


class Process:
    """An engine whose windows come with these halves."""

    def __init__(self, *halves):
        self.halves = list(halves)

    def measure(self, cell, seconds):
        return {
            "requests_per_s": 1.0,
            "step_ms": 1.0,
            "running": 1.0,
            "second_half_over_first": self.halves.pop(0),
        }


@pytest.mark.parametrize(
    ("halves", "expected"),
    [
        # (warm_up, halves) of what is kept; the second cell is measured by an engine that is warm
        ([1.4, 1.0, 1.0], [(True, 1.4), (False, 1.0), (False, 1.0)]),
        ([1.0, 1.4, 0.9, 1.02, 1.0], [(True, 1.0), (False, 1.4), (False, 0.9), (False, 1.02), (False, 1.0)]),
        ([1.0, 1.4, 1.4, 1.4, 1.0], [(True, 1.0), (False, 1.4), (False, 1.4), (False, 1.4), (False, 1.0)]),
    ],
)
def test_the_first_measurement_warms_up_and_unsteady_ones_are_repeated(bench, tmp_path, halves, expected):
    options = SimpleNamespace(seconds=1, full_seconds=1)
    record = bench.record.Record(tmp_path / "offline.json", options)
    process = Process(*halves)
    turns = SimpleNamespace(to=lambda engine: process)
    plan = bench.offline.Plan(turns, record, options, deadline=float("inf"))
    cells = [bench.load.Cell(128, 1024), bench.load.Cell(128, 1024, end="cap", tokens=1)]
    plan._measure("plain", cells, float("inf"))
    assert [(one["warm_up"], one["second_half_over_first"]) for one in record.measured] == expected
    assert record.left_out == []


def test_what_is_out_of_time_is_left_out_and_not_repeated(bench, tmp_path, monkeypatch):
    options = SimpleNamespace(seconds=1, full_seconds=1)
    record = bench.record.Record(tmp_path / "offline.json", options)
    clock = iter(range(0, 10_000, 20))
    monkeypatch.setattr(bench.offline.time, "monotonic", lambda: next(clock))
    turns = SimpleNamespace(to=lambda engine: process)
    process = Process(1.0, 1.4, 1.0)
    cells = [bench.load.Cell(128, 1024), bench.load.Cell(256, 1024)]
    bench.offline.Plan(turns, record, options, deadline=60)._measure("plain", cells, 60)
    assert [one["warm_up"] for one in record.measured] == [True, False]
    assert record.left_out == ["plain: 256/1024, full 0"]
