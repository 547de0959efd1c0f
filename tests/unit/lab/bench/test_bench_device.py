from __future__ import annotations

import io
import json
import signal
import sys
from types import SimpleNamespace

import pytest
from rich.console import Console

from pdd_cli import extras
from pdd_core.errors import ConfigurationError
from pdd_core.planner.profiles import MeasuredDevice
from pdd_lab.bench import device_bench
from pdd_lab.bench.cloud_plan import parse_numbers
from pdd_lab.bench.device_bench import DeviceBench, print_rates, run_device
from pdd_lab.bench.device_figures import Measured
from pdd_lab.bench.device_pass import STEPS, DevicePlan, Sample, one_pass, random_ids


class FakeContext:
    """A device of known speed, on a clock of its own: 100 tok/s prefill falling by length, 20 tok/s decode."""

    def __init__(self, factor: float = 1.0) -> None:
        self.ids, self.now, self.threads, self.factor = [], 0.0, 1, factor

    def clock(self) -> float:
        return self.now

    def rewind(self, length):
        del self.ids[length:]
        return length

    def use_threads(self, count):
        self.threads = count

    def decode(self, ids, *, want_logits):
        assert len(ids) > 0
        one = 0.05 if want_logits else 0.0
        self.now += self.factor * (one + 0.01 * len(ids)) / self.threads
        self.ids.extend(ids)


PLAN = DevicePlan.up_to(512, threads=(1, 2), reps=3)


def passes(*contexts: FakeContext, plan: DevicePlan = PLAN) -> Measured:
    measured = Measured()
    ids = random_ids(100, plan.room)
    for context in contexts:
        for threads in plan.threads:
            context.use_threads(threads)
            measured.add(threads, one_pass(context, plan, ids, clock=context.clock))
    return measured


def test_the_plan_goes_up_to_the_longest_and_fits_its_room() -> None:
    assert DevicePlan.up_to(1000, threads=(1,), reps=1).lengths == (128, 256, 512, 1000)
    context = FakeContext()
    list(one_pass(context, PLAN, random_ids(100, PLAN.room), clock=context.clock))
    assert len(context.ids) <= PLAN.room


def test_every_other_repetition_has_the_opposite_order() -> None:
    assert list(PLAN.order()) == [(0, 1), (0, 2), (1, 2), (1, 1), (2, 1), (2, 2)]


@pytest.mark.parametrize("changes", [{"longest": 100}, {"reps": 0}, {"threads": (0,)}])
def test_a_plan_that_measures_nothing_is_refused(changes) -> None:
    with pytest.raises(ConfigurationError):
        DevicePlan.up_to(changes.pop("longest", 512), **{"threads": (1,), "reps": 1, **changes})


def test_a_known_speed_is_found() -> None:
    rates = passes(FakeContext()).rates()
    prefill = [one for one in rates if (one.kind, one.threads) == ("prefill", 1)]
    decode = [one for one in rates if (one.kind, one.threads) == ("decode", 2)]
    assert [one.median for one in prefill] == pytest.approx([100.0] * 3)
    assert [one.median for one in decode] == pytest.approx([2 / 0.06] * 3)
    assert [one.at for one in decode] == [128 + STEPS / 2, 256 + STEPS / 2, 512 + STEPS / 2]
    batches = {one.tokens: one.median for one in rates if (one.kind, one.threads) == ("batch", 1)}
    assert batches[8] == pytest.approx(8 / 0.13)
    assert sorted(batches) == [1, 2, 4, 8, 16, 32, 64, 128]


def test_the_median_counts_and_the_extremes_are_kept() -> None:
    measured = passes(FakeContext(1.0), FakeContext(2.0), FakeContext(10.0))
    [first, *_] = [one for one in measured.rates() if (one.kind, one.threads) == ("prefill", 1)]
    assert (first.low, first.median, first.high) == pytest.approx((10.0, 50.0, 100.0))


def test_the_spread_needs_three_passes() -> None:
    assert passes(FakeContext(), FakeContext()).spread(1) is None
    assert passes(FakeContext(), FakeContext(), FakeContext()).spread(1) == pytest.approx(0)
    assert passes(FakeContext(1.0), FakeContext(1.25), FakeContext(1.0)).spread(1) > 0.1


def test_the_profile_is_the_planners_and_comes_back_from_its_file(tmp_path) -> None:
    measured = passes(FakeContext())
    assert measured.fastest() == 2
    profile = measured.profile(2, name="fake", model="m", n_ctx=4096)
    profile.save(tmp_path / "p.json")
    assert MeasuredDevice.load(tmp_path / "p.json") == profile
    assert [point.value for point in profile.prefill_tps] == pytest.approx([200.0] * 3)
    assert profile.spread == MeasuredDevice.model_fields["spread"].default


def test_the_table_has_a_row_per_length_and_per_batch() -> None:
    out = io.StringIO()
    print_rates(Console(file=out, width=120), passes(FakeContext()))
    text = out.getvalue()
    assert "100" in text
    assert "tokens at once" in text
    assert [line.split()[0] for line in text.splitlines() if line.strip()[:1].isdigit()][-1] == "128"


@pytest.mark.parametrize("text", ["", "0", "1,x", "-1", "1.5"])
def test_threads_that_are_no_numbers_are_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="--threads"):
        parse_numbers(text, "--threads")


def test_numbers_are_told_apart_by_commas_and_each_counts_once() -> None:
    assert parse_numbers("1, 2,2", "--threads") == (1, 2)


@pytest.fixture
def bench(monkeypatch, tmp_path):
    monkeypatch.setattr(extras, "find_spec", lambda _: True)
    gguf = tmp_path / "model.gguf"
    gguf.write_bytes(b"GGUF")

    def run(measure, **paths):
        monkeypatch.setattr(device_bench, "_measure", measure)
        out = io.StringIO()
        try:
            run_device(
                DeviceBench(gguf=gguf, threads=(1, 2), longest=512, reps=3),
                out=paths.get("out"),
                json_path=paths.get("json"),
                plot=paths.get("plot"),
                console=Console(file=out, width=200),
            )
        finally:
            run.printed = out.getvalue()

    return run


def fill(_gguf, _wanted, plan, measured, _step):
    measured.passes.extend(passes(FakeContext(), FakeContext(1.1), FakeContext(0.9), plan=plan).passes)


def test_profile_figures_and_picture_are_written(bench, tmp_path) -> None:
    bench(fill, out=tmp_path / "device.json", json=tmp_path / "all.json")
    profile = MeasuredDevice.load(tmp_path / "device.json")
    assert profile.model == "model"
    assert profile.n_ctx == 4096
    assert profile.name.endswith("2 threads")
    report = json.loads((tmp_path / "all.json").read_text())
    assert report["schema"] == 1
    assert report["reps"] == 3
    assert {rate["kind"] for rate in report["rates"]} == {"prefill", "decode", "batch"}
    assert report["profile"] == json.loads((tmp_path / "device.json").read_text())
    assert (tmp_path / "device.png").exists()
    assert (tmp_path / "device.svg").exists()
    assert "Profile, with 2 of" in bench.printed


def test_ctrl_c_shows_what_there_is_and_writes_nothing(bench, tmp_path) -> None:
    def cut_short(gguf, wanted, plan, measured, step):
        context = FakeContext()
        measured.add(1, one_pass(context, plan, random_ids(100, plan.room), clock=context.clock))

        def broken():
            yield Sample("prefill", 1, 1, 1.0)
            raise KeyboardInterrupt

        measured.add(2, broken())

    with pytest.raises(KeyboardInterrupt):
        bench(cut_short, out=tmp_path / "device.json")
    assert "Interrupted after 1 passes" in bench.printed
    assert "100" in bench.printed
    assert not (tmp_path / "device.json").exists()


def test_sigterm_ends_it_and_nothing_is_written(bench, tmp_path) -> None:
    def long(gguf, wanted, plan, measured, step):
        signal.raise_signal(signal.SIGTERM)

    with pytest.raises(SystemExit) as left:
        bench(long, out=tmp_path / "device.json")
    assert left.value.code == 128 + signal.SIGTERM
    assert not (tmp_path / "device.json").exists()


def test_the_engine_is_driven_as_planned_and_freed(monkeypatch, tmp_path) -> None:
    made = []

    class Loaded(FakeContext):
        model = "a model"

        def __init__(self, path, params, *, abort=None):
            super().__init__()
            self.n_ctx, self.used, self.open, self.abort = params.n_ctx, [params.threads], True, abort
            self.context, self.sequences = self, (self,)
            made.append(self)

        def use_threads(self, count):
            super().use_threads(count)
            self.used.append(count)

        def decode(self, ids, *, want_logits):
            super().decode(ids, want_logits=want_logits)
            assert len(self.ids) <= self.n_ctx

        def close(self):
            self.open = False

    for name, fields in (
        ("context", {"LlamaContext": Loaded}),
        ("vocabulary", {"Vocabulary": lambda _: SizedVocab()}),
    ):
        monkeypatch.setitem(sys.modules, f"pdd_llamacpp_adapter.engine.{name}", SimpleNamespace(**fields))
    measured, said = Measured(), []
    plan = DevicePlan.up_to(300, threads=(1, 2), reps=2)
    step = SimpleNamespace(say=said.append)
    device_bench._measure(tmp_path / "m.gguf", DeviceBench(), plan, measured, step)
    [context] = made
    assert context.used == [1, 1, 2, 2, 1]
    assert [threads for threads, _ in measured.passes] == [1, 2, 2, 1]
    assert not context.open
    assert context.abort is None, "Ctrl-C is looked at between two batches"
    assert said[0] == "pass 1 of 4, 1 threads"
    assert "about" in said[1]


class SizedVocab:
    size = 100
