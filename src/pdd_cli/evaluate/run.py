"""``pdd-device eval refine``: measures, case by case, and reports."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

from pdd_cli.cache import published
from pdd_cli.evaluate.cases import Source
from pdd_cli.evaluate.documents import read_library
from pdd_cli.evaluate.measure import GIVEN, POSITIONS, Examiner
from pdd_cli.evaluate.report import NONE, TaskResults, figures
from pdd_cli.evaluate.settings import BAD_RATIO
from pdd_cli.evaluate.tasks import MAKERS
from pdd_cli.extras import require
from pdd_cli.host import version_of
from pdd_core.errors import ConfigurationError
from pdd_core.refinement.refiners import refiner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from rich.console import Console

    from pdd_cli.evaluate.cases import Case
    from pdd_cli.evaluate.reader import Reader
    from pdd_cli.evaluate.report import Setting
    from pdd_cli.evaluate.settings import EvalSettings
    from pdd_cli.progress import Step

SCHEMA = 1
"""Of the JSON file."""
TRIES = 5
"""Cases to try for each one to score, before the model is held to be unable to do the task."""
ROOM = 512
"""Tokens of context beyond the longest document: template, question, answer, hidden lines."""
BAD: Setting = ("random", BAD_RATIO)


def run_refine(settings: EvalSettings, *, out: Path, console: Console) -> None:
    """Evaluate, print the tables, and write ``eval-refine.json`` and ``eval-refine.png`` into `out`.

    Raises:
        ConfigurationError: a setting cannot work, or an extra is not installed.
        ModelError: the model cannot be read, or shows no attention.
    """
    require("bench", need="pdd-device eval")
    require("device", need="pdd-device eval")
    from pdd_cli.demo_model import device_gguf
    from pdd_cli.evaluate.plot import draw
    from pdd_cli.evaluate.reader import Reader
    from pdd_cli.evaluate.store import Store
    from pdd_cli.evaluate.table import tables
    from pdd_cli.progress import ConsoleProgress

    library = read_library(settings.texts)
    progress = ConsoleProgress(console)
    gguf = settings.gguf or device_gguf(progress=progress)
    reader = Reader(gguf, n_ctx=settings.longest + ROOM, threads=settings.threads)
    try:
        _check_lengths(settings, reader.n_ctx_train)
        layers = _layers(settings, reader)
        examiner = Examiner(
            reader, Store.of_model(gguf), window=settings.window, layers=layers, heads=settings.heads
        )
        counted: dict[str, int] = {}

        def count(text: str) -> int:
            if text not in counted:
                counted[text] = len(reader.vocab.tokenize(text))
            return counted[text]

        source = Source(library, count, settings.length)
        results = []
        for task in settings.tasks:
            with progress(f"Evaluating {task}") as step:
                results.append(_measure(task, settings, source, examiner, step))
    finally:
        reader.close()
    report = {
        "schema": SCHEMA,
        "model": {"file": gguf.name, "layers": reader.n_layer, "n_ctx_train": reader.n_ctx_train},
        "engine": f"llama-cpp-python {version_of('llama-cpp-python')}",
        "settings": _described(settings, layers),
        **figures(results, bad=BAD, tokens=GIVEN),
    }
    for table in tables(report):
        console.print(table)
    picture, data = out / "eval-refine.png", out / "eval-refine.json"
    draw(report, picture)
    with published(data) as draft:
        draft.write_text(json.dumps(report, indent=2) + "\n")
    for path in (data, picture):
        console.print(f"wrote {path}", soft_wrap=True, highlight=False, markup=False)
    for result in results:
        if len(result.records) < settings.cases:
            console.print(
                f"{result.task}: the model got {len(result.records)} of {result.tried} right with the full "
                f"prompt, and {settings.cases} were asked for",
                style="yellow",
            )


def _check_lengths(settings: EvalSettings, n_ctx_train: int) -> None:
    if settings.longest + ROOM > n_ctx_train:
        raise ConfigurationError(
            f"--lengths {settings.lengths} exceeds the model: it was trained for {n_ctx_train} tokens, and "
            f"template, question and answer need up to {ROOM}"
        )


def _layers(settings: EvalSettings, reader: Reader) -> tuple[int, ...]:
    # vLLM is not needed for this: the choice of layers is plain arithmetic
    from pdd_vllm_plugin.capture.layers import choose_layers

    return choose_layers(settings.depths, range(reader.n_layer), reader.n_layer)


def _measure(task: str, settings: EvalSettings, source: Source, examiner: Examiner, step: Step) -> TaskResults:
    result = TaskResults(task)
    begun = time.monotonic()
    for case in _cases(task, settings, source):
        if len(result.records) == settings.cases:
            break
        _one(case, settings, examiner, result)
        done = len(result.records)
        left = (time.monotonic() - begun) * (settings.cases / done - 1) if done else 0.0
        step.say(f"{done} of {settings.cases} cases, {result.tried} tried, about {left / 60:.0f} min left")
    return result


def _cases(task: str, settings: EvalSettings, source: Source) -> Iterator[Case]:
    for number in range(TRIES * settings.cases):
        case = MAKERS[task](source, number)
        if case is not None:
            yield case


def _one(case: Case, settings: EvalSettings, examiner: Examiner, result: TaskResults) -> None:
    record, prompt = examiner.full(case)
    result.tried += 1
    if not record["right"]:
        return
    scores = examiner.scores(case, prompt)
    kept: dict[Setting, list[int]] = {}
    # the full prompt first: its context is at hand, and what follows is compared with it
    for ratio in sorted(settings.ratios, reverse=True):
        for name in settings.refiners:
            kept[name, ratio] = list(refiner(name).pdd_refine(scores, prompt, ratio) or ())
    kept[BAD] = list(refiner(BAD[0]).pdd_refine(scores, prompt, BAD[1]) or ())
    kept[NONE, 0.0] = prompt.protected_indices()
    keys = examiner.outcomes(case, record, prompt, kept.values())
    result.records.append(record)
    for setting, key in zip(kept, keys, strict=True):
        result.add(setting, record["outcomes"][key])


def _described(settings: EvalSettings, layers: tuple[int, ...]) -> dict[str, Any]:
    return {
        "texts": [path.name for path in settings.texts] or ["pydoc_data.topics"],
        "cases": settings.cases,
        "lengths": settings.lengths,
        "ratios": list(settings.ratios),
        "refiners": {name: repr(refiner(name)) for name in settings.refiners},
        "window": settings.window,
        "layers": list(layers),
        "heads": settings.heads,
        "given_tokens": GIVEN,
        "compared_tokens": POSITIONS,
    }
