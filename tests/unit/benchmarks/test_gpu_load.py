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
    common = {"shape": cell.name, "prompt": 128, "output": 1024, "shared": 0}
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
