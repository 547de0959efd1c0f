from __future__ import annotations

from pathlib import Path

import pytest

from pdd_core.errors import ConfigurationError
from pdd_core.refinement.capture import CAPTURE_DEPTHS, CAPTURE_HEADS, CAPTURE_WINDOW
from pdd_core.refinement.refiners import REFINERS
from pdd_lab.evaluate.evaluation_settings import QUICK, RATIOS, TASKS, EvalSettings, refine_settings

NOTHING = {
    **dict.fromkeys(("gguf", "texts", "cases", "first", "lengths", "ratios", "tasks", "refiners")),
    **dict.fromkeys(("layers", "window", "heads", "jobs")),
}


def settings(**given):
    return refine_settings(**{**NOTHING, "threads": 4, "quick": False, **given})


def test_nothing_said_means_the_defaults_and_the_clouds_capture():
    found = settings()
    assert (found.cases, found.first, found.jobs, found.ratios) == (100, 0, 1, RATIOS)
    assert (found.tasks, found.refiners) == (TASKS, tuple(REFINERS))
    assert (found.window, found.depths, found.heads) == (CAPTURE_WINDOW, CAPTURE_DEPTHS, CAPTURE_HEADS)


def test_quick_is_small_and_what_is_said_wins():
    quick = settings(quick=True)
    assert (quick.cases, quick.longest, quick.ratios) == (QUICK["cases"], QUICK["longest"], QUICK["ratios"])
    assert settings(quick=True, cases=7).cases == 7


def test_what_is_said_is_read():
    found = settings(
        texts=[Path("a"), Path("b"), Path("a")], lengths="100:200", ratios="0.5,0.25,0.5", layers="0.3,0.6",
        tasks=["recall"], refiners=["attention", "random"], first=1000, window=32, heads="mean", jobs=2,
    )  # fmt: skip
    assert found.texts == (Path("a"), Path("b"))
    assert (found.shortest, found.longest, found.lengths) == (100, 200, "100:200")
    assert (found.ratios, found.depths) == ((0.25, 0.5), (0.3, 0.6))
    assert (found.first, found.window, found.heads) == (1000, 32, "mean")
    assert (found.jobs, found.threads_per_job) == (2, 2)
    assert found.n_ctx > 200


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lengths": "many"}, "--lengths"),
        ({"lengths": "500:400"}, "--lengths"),
        ({"lengths": "10:400"}, "--lengths"),
        ({"ratios": "0,0.5"}, "--ratios"),
        ({"ratios": "0.5;0.6"}, "--ratios"),
        ({"ratios": "1.5"}, "--ratios"),
        ({"layers": "1.0"}, "--layers"),
        ({"window": 0}, "--window"),
        ({"window": 1000}, "--window"),
        ({"heads": "median"}, "--heads"),
        ({"tasks": ["poetry"]}, "--task poetry is unknown; known: agreement"),
        ({"refiners": ["magic"]}, "--refiner magic is unknown; known: attention"),
        ({"jobs": 5}, "--jobs must be from 1 to the number of threads, 4, not 5"),
        ({"first": -1}, "--first"),
        ({"cases": 0}, "--cases"),
    ],
)
def test_what_cannot_work_is_told(given, message):
    with pytest.raises(ConfigurationError, match=message):
        settings(**given)


def test_all_lengths_are_within_what_was_asked_for():
    made = EvalSettings(shortest=100, longest=400)
    assert all(100 <= made.length(number) <= 400 for number in range(500))
