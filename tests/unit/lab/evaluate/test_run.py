from __future__ import annotations

import io
import json
import sys
from types import SimpleNamespace

import pytest
from evaluate_fakes import CopyingReader
from rich.console import Console

from pdd_cli import demo_model
from pdd_core.errors import ConfigurationError, ContextOverflow, ModelError
from pdd_core.refinement.refiners import AttentionRefiner
from pdd_core.refinement.refiners.attention import LEAST_FOCUS
from pdd_lab.evaluate import run
from pdd_lab.evaluate.evaluation_settings import INFORMED, NONE, EvalSettings
from pdd_lab.evaluate.examination import MeasuredCase
from pdd_lab.evaluate.results import ResultStore


class Steps:
    def __init__(self):
        self.said = []

    def say(self, detail):
        self.said.append(detail)


def measured(number):
    """Every third number has no case, every other one is wrong."""
    if number % 3 == 0:
        return None
    record = {"case": {"kind": "passkey", "number": number}, "prompt_tokens": 10, "cloud": [-0.1] * 8}
    return MeasuredCase(record, {("attention", 0.5): {"score": 1.0}} if number % 2 else {})


def test_cases_are_measured_until_enough_are_right():
    asked = []

    def measure_all(task, numbers):
        for number in numbers:
            asked.append(number)
            yield measured(number)

    steps = Steps()
    result = run.measure("recall", EvalSettings(cases=3, first=100), measure_all, steps)
    assert [record["case"]["number"] for record in result.records] == [101, 103, 107]
    assert asked == list(range(100, 108))
    assert result.tried == 6
    assert steps.said[-1] == "3 of 3 cases, 6 tried, about 0 min left"


def test_a_task_that_the_model_cannot_do_ends():
    def never(task, numbers):
        return (MeasuredCase({"right": False}, {}) for _ in numbers)

    result = run.measure("recall", EvalSettings(cases=3), never, Steps())
    assert (result.tried, result.records) == (3 * run.TRIES, [])


@pytest.fixture
def model(monkeypatch, tmp_path):
    """A model in place of the real one, whose imports need llama.cpp."""
    readers = []

    def opened(gguf, **options):
        readers.append(CopyingReader(gguf, **options))
        return readers[-1]

    monkeypatch.setitem(sys.modules, "pdd_lab.evaluate.eval_model", SimpleNamespace(EvalModel=opened))
    monkeypatch.setattr(run, "require", lambda *_, **__: None)
    monkeypatch.setattr(demo_model, "device_gguf", lambda **_: tmp_path / "model.gguf")
    monkeypatch.setattr(ResultStore, "of_model", classmethod(lambda cls, _: cls(tmp_path / "store")))
    return readers


def evaluated(settings, out):
    console = Console(file=io.StringIO(), width=200)
    run.run_refine(settings, out=out, console=console)
    return json.loads((out / "eval-refine.json").read_text()), console.file.getvalue()


SMALL = EvalSettings(cases=2, shortest=200, longest=260, tasks=("recall",), ratios=(0.25, 1.0))


def test_an_evaluation_leaves_tables_a_file_and_a_picture(model, tmp_path):
    report, text = evaluated(SMALL, tmp_path)
    rows = {(row["refiner"], row["ratio"]): row for row in report["tasks"]["recall"]["settings"]}
    refiners = ("attention", "lexical", "truncation", "random")
    settings = {(name, ratio) for name in refiners for ratio in (0.25, 1.0)}
    assert set(rows) == settings | {(INFORMED, 0.25), (NONE, 0.0)}
    assert rows[INFORMED, 0.25]["score"]["mean"] == rows[INFORMED, 0.25]["evidence"]["mean"] == 1
    assert rows[NONE, 0.0]["evidence"]["mean"] == 0
    assert all(rows[name, 1.0]["score"]["mean"] == 1 for name in refiners)
    assert rows[NONE, 0.0]["score"]["mean"] == 0
    assert rows["attention", 0.25]["kept"] == pytest.approx(0.25, abs=0.02)
    assert report["guard"]["tasks"]["recall"][0]["thresholds"][0]["ratio_1"]["mean"] == 0
    assert (tmp_path / "eval-refine.png").read_bytes().startswith(b"\x89PNG")
    assert "Recall of hidden numbers, exact (%): 2 cases, of" in text
    assert f"{report['tasks']['recall']['spread']} would not be refined" in text
    assert "Evidence wholly kept (%)" in text
    assert "eval-refine.png" in text
    assert all(reader.closed for reader in model)


def test_a_second_run_reads_nothing_again(model, tmp_path):
    first, _ = evaluated(SMALL, tmp_path)
    again, _ = evaluated(SMALL, tmp_path)
    assert first == again
    assert not any(reader.reads or reader.forces for reader in model[2:])


def test_prompts_that_the_cloud_would_not_refine_are_counted_and_measured(model, tmp_path, monkeypatch):
    monkeypatch.setattr(AttentionRefiner, "focus", lambda self, scores, prompt: LEAST_FOCUS - 0.01)
    report, _ = evaluated(SMALL, tmp_path)
    task = report["tasks"]["recall"]
    assert (task["spread"], task["scored"]) == (2, 2)
    assert all(row["score"]["n"] == 2 for row in task["settings"])


def test_the_report_says_what_was_measured(model, tmp_path):
    report, _ = evaluated(SMALL, tmp_path)
    told = report["settings"]
    assert (told["cases"], told["first"], told["lengths"]) == (2, 0, "200:260")
    assert told["texts"] == ["pydoc_data.topics"]
    assert told["refiners"]["attention"].startswith("AttentionRefiner(pool=")
    assert report["model"] == {"file": "model.gguf", "layers": 10, "n_ctx_train": 8192}


def test_the_layers_are_those_that_the_cloud_captures(model, tmp_path, monkeypatch):
    """As `layers_of` in tests/unit/vllm_plugin/capture/test_layers.py, for Gemma 3 of 270M."""
    monkeypatch.setattr(CopyingReader, "n_layer", 18)
    monkeypatch.setattr(CopyingReader, "full_layers", lambda self: (5, 11, 17))
    report, _ = evaluated(SMALL, tmp_path)
    assert report["settings"]["layers"] == [5, 11]


def test_a_model_without_a_full_layer_is_refused_as_in_the_cloud(model, tmp_path, monkeypatch):
    monkeypatch.setattr(CopyingReader, "full_layers", lambda self: ())
    with pytest.raises(ModelError, match="no layer of this model attends to its whole prompt"):
        evaluated(SMALL, tmp_path)
    assert all(reader.closed for reader in model)


def test_a_model_that_cannot_do_it_is_told_of(model, tmp_path, monkeypatch):
    monkeypatch.setattr(CopyingReader, "answer", lambda self, tokens, **_: ([0] * tokens, [-0.1] * tokens))
    report, text = evaluated(SMALL, tmp_path)
    assert report["tasks"] == {}
    assert "recall: the model got 0 of 10 right with the full prompt, and 2 were asked for" in text
    assert not (tmp_path / "eval-refine.png").exists()


def text_file(tmp_path, paragraph):
    file = tmp_path / "text.txt"
    file.write_text("\n\n".join(paragraph for _ in range(30)), encoding="utf-8")
    return (file,)


def test_a_text_without_a_case_is_refused_before_anything_is_measured(model, tmp_path):
    texts = text_file(tmp_path, "words without any end " * 10)
    settings = EvalSettings(cases=2, shortest=100, longest=120, tasks=("recall", "answers"), texts=texts)
    with pytest.raises(ConfigurationError, match=r"--task answers makes no case of --text"):
        evaluated(settings, tmp_path / "out")
    assert not any(reader.reads for reader in model)


def test_a_case_that_does_not_fit_the_context_is_left_out(model, tmp_path, monkeypatch):
    read = CopyingReader.read

    def overflows(self, ids, **options):
        if not self.reads:
            self.reads.append(tuple(ids))
            raise ContextOverflow("2048 + 82 tokens do not fit a context of 2048")
        return read(self, ids, **options)

    monkeypatch.setattr(CopyingReader, "read", overflows)
    report, _ = evaluated(SMALL, tmp_path)
    assert report["tasks"]["recall"]["scored"] == 2


def test_a_text_of_which_no_case_fits_is_an_error(model, tmp_path, monkeypatch):
    def overflows(self, ids, **options):
        raise ContextOverflow("2048 + 82 tokens do not fit a context of 2048")

    monkeypatch.setattr(CopyingReader, "read", overflows)
    with pytest.raises(ConfigurationError, match=r"recall: none of 10 cases fits"):
        evaluated(SMALL, tmp_path)


def test_a_folder_that_cannot_be_written_is_refused_before_a_model_is_loaded(model, tmp_path):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "results"):
        with pytest.raises(ConfigurationError, match=r"--out .*file.* cannot be written"):
            evaluated(SMALL, out)
    assert not model


def test_documents_longer_than_the_model_was_trained_for_are_refused(model, tmp_path):
    with pytest.raises(ConfigurationError, match=r"--lengths 512:9000 .* 8192 tokens"):
        evaluated(EvalSettings(longest=9000), tmp_path)
    assert not list(tmp_path.iterdir())
