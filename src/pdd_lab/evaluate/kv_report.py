"""The figures of an evaluation of KV handover: what goes into the table and the JSON."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING, Any

from pdd_core.refinement.guard import THRESHOLD
from pdd_lab.evaluate.kv_ways import SELECTIONS, SHARE, cells_geometry
from pdd_lab.evaluate.report import GUARD_TOKENS, rounded, rounded_figure
from pdd_lab.evaluate.statistics import wilson

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pdd_lab.evaluate.evaluation_settings import Setting
    from pdd_lab.evaluate.kv_settings import KVEvalSettings
    from pdd_lab.evaluate.report import TaskResults
    from pdd_llamacpp_adapter.engine.kv.kv_support import KVShape


def kv_figures(results: Iterable[TaskResults], *, bytes_per_token: dict[str, int]) -> dict[str, Any]:
    """Return all figures, ready for JSON.

    Args:
        results: of each task.
        bytes_per_token: by way; prompts that the device reads have none.
    """
    results = list(results)
    scored = [result for result in results if result.records]
    settings = list(dict.fromkeys(setting for result in scored for setting in result.outcomes))
    return {
        "tried": {result.task: result.tried for result in results},
        "scored": {result.task: len(result.records) for result in results},
        "guard_threshold": THRESHOLD,
        "ways": [_way(setting, scored, bytes_per_token) for setting in settings],
    }


def bytes_of(settings: KVEvalSettings, shape: KVShape) -> dict[str, int]:
    """Return the bytes per token of a prompt that each way sends, over all layers; raises what `sent` raises."""
    layers, heads, head_size = shape.num_layers, shape.num_kv_heads, shape.head_size
    whole = {
        way: cells_geometry(way, layers=layers, heads=heads, head_size=head_size).cell_bytes
        for way in settings.ways
    }
    return {way: round(size * SHARE) if way in SELECTIONS else size for way, size in whole.items()}


def _way(setting: Setting, results: list[TaskResults], bytes_per_token: dict[str, int]) -> dict[str, Any]:
    name, ratio = setting
    return {
        "way": name,
        "ratio": ratio,
        # a device with other weights receives the same
        "bytes_per_token": bytes_per_token.get(name.split()[-1]),
        "tasks": {result.task: _task(setting, result) for result in results},
        "guard": [_guard(setting, results, tokens) for tokens in GUARD_TOKENS],
    }


def _task(setting: Setting, result: TaskResults) -> dict[str, Any]:
    return {
        "score": rounded(result.score(setting)),
        "kl": None if result.exact else rounded(result.divergence(setting)),
        "guard": [_guard(setting, [result], tokens) for tokens in GUARD_TOKENS],
    }


def _guard(setting: Setting, results: Iterable[TaskResults], tokens: int) -> dict[str, Any]:
    """Return how often the guard fires in the cases of all `results`, and by how much the device differs."""
    found = [value for result in results for value in result.statistic(setting, tokens)]
    fired = sum(value > THRESHOLD for value in found)
    return {
        "tokens": tokens,
        "fired": fired,
        "share": rounded(wilson(fired, len(found))),
        "mean": rounded_figure(statistics.fmean(found)),
        "median": rounded_figure(statistics.median(found)),
        "greatest": rounded_figure(max(found)),
    }
