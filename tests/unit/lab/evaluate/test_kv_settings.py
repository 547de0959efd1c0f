from __future__ import annotations

import pytest

from pdd_core.errors import ConfigurationError
from pdd_lab.evaluate.kv_settings import KVEvalSettings, kv_settings

NOTHING = {
    **dict.fromkeys(
        ("ways", "device", "refiners", "ratios", "gguf", "texts", "cases", "first", "lengths", "tasks")
    ),
    **dict.fromkeys(("layers", "window", "heads", "jobs")),
}


def settings(**given):
    return kv_settings(**{**NOTHING, "threads": 4, "quick": False, **given})


def test_nothing_said_means_three_types_beside_a_quarter_of_the_text():
    found = settings()
    assert (found.ways, found.device) == (("k8v4", "q8_0", "q4_0"), None)
    assert (found.refiners, found.ratios) == (("attention", "lexical"), (0.25,))
    assert (found.cases, found.n_ctx) == (100, KVEvalSettings().n_ctx)


def test_what_is_said_is_read():
    found = settings(ways=["f16", "oracle", "f16"], device="Q4_K_M", ratios="0.5", refiners=["random"], jobs=4)
    assert (found.ways, found.device) == (("f16", "oracle"), "Q4_K_M")
    assert (found.refiners, found.ratios, found.threads_per_job) == (("random",), (0.5,), 1)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"ways": ["q3"]}, "--way q3 is unknown; known: f16, q8_0"),
        ({"device": "q4"}, "--device q4 is unknown; known: Q8_0"),
        ({"cases": 0}, "--cases"),
    ],
)
def test_what_cannot_work_is_told(given, message):
    with pytest.raises(ConfigurationError, match=message):
        settings(**given)
