"""``pdd-device eval refine``: measures, case by case, and reports."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

from pdd_cli.cache import check_folder, published
from pdd_cli.extras import require
from pdd_cli.host import version_of
from pdd_core.errors import ConfigurationError, ModelError
from pdd_core.refinement.capture import choose_layers
from pdd_core.refinement.refiners import refiner
from pdd_lab.evaluate.documents import read_library
from pdd_lab.evaluate.evaluation_settings import BAD, ROOM, TRIES
from pdd_lab.evaluate.examination import Examination, check_cases
from pdd_lab.evaluate.jobs import workers
from pdd_lab.evaluate.report import TaskResults, figures

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from rich.console import Console

    from pdd_cli.progress import ConsoleProgress, Step
    from pdd_lab.evaluate.documents import Library
    from pdd_lab.evaluate.evaluation_settings import EvalSettings
    from pdd_lab.evaluate.jobs import MeasureAll

SCHEMA = 1
"""Of the JSON file."""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What is asked of a model before anything is measured."""

    gguf: Path
    n_layer: int
    full_layers: tuple[int, ...]
    """Those that attend to the whole prompt: the cloud captures no others."""
    n_ctx_train: int

    @classmethod
    def of(cls, gguf: Path, settings: EvalSettings, library: Library) -> ModelFacts:
        """Load `gguf` with as little context as possible; raises what `EvalModel` and `check_cases` raise.

        Raises:
            ModelError: no layer can be looked at; the cloud refuses to refine with such a model, too.
        """
        from pdd_lab.evaluate.eval_model import EvalModel

        reader = EvalModel(gguf, n_ctx=ROOM, threads=settings.threads_per_job)
        try:
            check_cases(settings, library, cache(lambda text: len(reader.vocab.tokenize(text))))
            full = reader.full_layers()
            if not full:
                raise ModelError(f"{gguf}: no layer of this model attends to its whole prompt")
            return cls(gguf, reader.n_layer, full, reader.n_ctx_train)
        finally:
            reader.close()


def run_refine(settings: EvalSettings, *, out: Path, console: Console) -> None:
    """Evaluate, print the tables, and write ``eval-refine.json`` and ``eval-refine.png`` into `out`.

    Raises:
        ConfigurationError: a setting or a text cannot work, `out` cannot be written, or an extra is not installed.
        DeviceEngineFailed: llama.cpp returned an error, or a process of several was ended.
        ModelError: the model cannot be read, or shows no attention.
    """
    require("plots", need="pdd-device eval")
    require("device", need="pdd-device eval")
    from pdd_lab.evaluate.results import ResultStore

    facts, progress = prepared(settings, out=out, console=console)
    layers = choose_layers(settings.depths, facts.full_layers, facts.n_layer)
    store = ResultStore.of_model(facts.gguf)
    results = []
    with workers(settings.jobs, Examination.open, settings, facts.gguf, store.folder, layers) as measure_all:
        for task in settings.tasks:
            with progress(f"Evaluating {task}") as step:
                results.append(measure(task, settings, measure_all, step))
    report = {
        "schema": SCHEMA,
        "model": {"file": facts.gguf.name, "layers": facts.n_layer, "n_ctx_train": facts.n_ctx_train},
        "engine": f"llama-cpp-python {version_of('llama-cpp-python')}",
        "settings": _described(settings, layers),
        **figures(results, bad=BAD),
    }
    show(report, settings, out=out, console=console)
    check_tried(results, settings)


def prepared(settings: EvalSettings, *, out: Path, console: Console) -> tuple[ModelFacts, ConsoleProgress]:
    """Check what can be checked before anything is measured; return the model's facts, and what shows progress.

    Raises:
        ConfigurationError: a setting or a text cannot work, or `out` cannot be written.
        ModelError: the model cannot be read, or shows no attention.
    """
    from pdd_cli.demo_model import device_gguf
    from pdd_cli.progress import ConsoleProgress

    # before a model is made or loaded: whatever is wrong with these is said at once
    library = read_library(settings.texts)
    check_folder(out, option="--out")
    progress = ConsoleProgress(console)
    facts = ModelFacts.of(settings.gguf or device_gguf(progress=progress), settings, library)
    if settings.n_ctx > facts.n_ctx_train:
        raise ConfigurationError(
            f"--lengths {settings.lengths} exceeds the model: it was trained for {facts.n_ctx_train} tokens, and "
            f"template, question and answer need up to {ROOM}"
        )
    return facts, progress


def check_tried(results: Sequence[TaskResults], settings: EvalSettings) -> None:
    """Check that some case of every task was tried.

    Raises:
        ConfigurationError: of a task, none fits the context.
    """
    if without := [result.task for result in results if not result.tried]:
        raise ConfigurationError(
            f"{', '.join(without)}: none of {TRIES * settings.cases} cases fits a context of {settings.n_ctx} "
            "tokens; choose other --lengths, or give another --text"
        )


def measure(task: str, settings: EvalSettings, measure_all: MeasureAll, step: Step) -> TaskResults:
    """Measure the cases of one task: as many as are asked for of those that the model gets right."""
    result = TaskResults(task)
    begun = time.monotonic()
    for measured in measure_all(task, settings.numbers):
        if measured is None:
            continue
        result.add(measured)
        done = len(result.records)
        left = (time.monotonic() - begun) * (settings.cases / done - 1) if done else 0.0
        step.say(f"{done} of {settings.cases} cases, {result.tried} tried, about {left / 60:.0f} min left")
        if done == settings.cases:
            break
    return result


def show(report: dict[str, Any], settings: EvalSettings, *, out: Path, console: Console) -> None:
    """Print the tables, write the files, and say where the model could not do what was asked for."""
    from pdd_lab.evaluate.presentation import draw, tables

    for table in tables(report):
        console.print(table)
    picture, data = out / "eval-refine.png", out / "eval-refine.json"
    if report["tasks"]:
        draw(report, picture)
    with published(data) as draft:
        draft.write_text(json.dumps(report, indent=2) + "\n")
    for path in (data, picture):
        if path.exists():
            console.print(f"wrote {path}", soft_wrap=True, highlight=False, markup=False)
    for name, tried in report["tried"].items():
        scored = report["tasks"].get(name, {}).get("scored", 0)
        if scored < settings.cases:
            console.print(
                f"{name}: the model got {scored} of {tried} right with the full prompt, and {settings.cases} "
                "were asked for",
                style="yellow",
            )


def _described(settings: EvalSettings, layers: tuple[int, ...]) -> dict[str, Any]:
    from pdd_lab.evaluate.measure import GIVEN, POSITIONS

    return {
        "texts": [path.name for path in settings.texts] or ["pydoc_data.topics"],
        "cases": settings.cases,
        "first": settings.first,
        "lengths": settings.lengths,
        "ratios": list(settings.ratios),
        "refiners": {name: repr(refiner(name)) for name in settings.refiners},
        "window": settings.window,
        "layers": list(layers),
        "heads": settings.heads,
        "given_tokens": GIVEN,
        "compared_tokens": POSITIONS,
    }
