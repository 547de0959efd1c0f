"""``pdd-device eval kv``: measures, case by case, and reports."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pdd_cli.cache import published
from pdd_cli.extras import require
from pdd_cli.host import version_of
from pdd_core.refinement.capture import choose_layers
from pdd_core.refinement.refiners import refiner
from pdd_lab.evaluate.evaluation_settings import ROOM
from pdd_lab.evaluate.jobs import workers
from pdd_lab.evaluate.kv_examination import KVExamination
from pdd_lab.evaluate.kv_report import bytes_of, kv_figures
from pdd_lab.evaluate.run import check_tried, measure, prepared

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from pdd_lab.evaluate.kv_settings import KVEvalSettings
    from pdd_llamacpp_adapter.engine.kv.kv_support import KVShape

SCHEMA = 1
"""Of the JSON file."""


def run_kv(settings: KVEvalSettings, *, out: Path, console: Console) -> None:
    """Evaluate, print the tables, and write ``eval-kv.json`` into `out`.

    Raises:
        ConfigurationError: a setting or a text cannot work, `out` cannot be written, or an extra is not installed.
        DeviceEngineFailed: llama.cpp returned an error, or a process of several was ended.
        ModelError: the model cannot be read or quantised, or has no cells that could be handed over.
    """
    require("device", need="pdd-device eval")
    from pdd_lab.evaluate.quantised_device import quantised_gguf
    from pdd_lab.evaluate.results import ResultStore

    facts, progress = prepared(settings, out=out, console=console)
    sizes = bytes_of(settings, cells_shape(facts.gguf, settings))
    layers = choose_layers(settings.depths, facts.full_layers, facts.n_layer)
    store = ResultStore.of_model(facts.gguf)
    device = None
    if settings.device is not None:
        with progress(f"Quantising the device's weights to {settings.device}"):
            device = quantised_gguf(facts.gguf, settings.device, store.folder)
    results = []
    with workers(
        settings.jobs, KVExamination.open, settings, facts.gguf, store.folder, layers, device
    ) as measure_all:
        for task in settings.tasks:
            with progress(f"Evaluating {task}") as step:
                results.append(measure(task, settings, measure_all, step))
    report = {
        "schema": SCHEMA,
        "model": {"file": facts.gguf.name, "layers": facts.n_layer, "n_ctx_train": facts.n_ctx_train},
        "engine": f"llama-cpp-python {version_of('llama-cpp-python')}",
        "settings": _described(settings, layers),
        **kv_figures(results, bytes_per_token=sizes),
    }
    _show(report, settings, out=out, console=console)
    check_tried(results, settings)


def cells_shape(gguf: Path, settings: KVEvalSettings) -> KVShape:
    """Return what the model's cells look like; raises what `KVModel` raises."""
    from pdd_lab.evaluate.kv_model import KVModel

    model = KVModel(gguf, n_ctx=ROOM, threads=settings.threads_per_job)
    model.close()
    return model.shape


def _show(report: dict[str, Any], settings: KVEvalSettings, *, out: Path, console: Console) -> None:
    from pdd_lab.evaluate.kv_presentation import kv_tables

    for table in kv_tables(report):
        console.print(table)
    data = out / "eval-kv.json"
    with published(data) as draft:
        draft.write_text(json.dumps(report, indent=2) + "\n")
    console.print(f"wrote {data}", soft_wrap=True, highlight=False, markup=False)
    for name, tried in report["tried"].items():
        if report["scored"][name] < settings.cases:
            console.print(
                f"{name}: the model got {report['scored'][name]} of {tried} right with the full prompt, and "
                f"{settings.cases} were asked for",
                style="yellow",
            )


def _described(settings: KVEvalSettings, layers: tuple[int, ...]) -> dict[str, Any]:
    from pdd_lab.evaluate.kv_ways import SHARE
    from pdd_lab.evaluate.measure import GIVEN, POSITIONS

    return {
        "texts": [path.name for path in settings.texts] or ["pydoc_data.topics"],
        "cases": settings.cases,
        "first": settings.first,
        "lengths": settings.lengths,
        "ways": list(settings.ways),
        "device": settings.device,
        "selected_share": SHARE,
        "ratios": list(settings.ratios),
        "refiners": {name: repr(refiner(name)) for name in settings.refiners},
        "layers": list(layers),
        "given_tokens": GIVEN,
        "compared_tokens": POSITIONS,
    }
