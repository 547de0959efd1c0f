from __future__ import annotations

import math

import pytest

from pdd_cli.demo.scenario import HEADROOM, READING_RATE, DemoScenario, kv_budget, sustained_rate
from pdd_core.errors import ConfigurationError
from pdd_core.refinement.guard import LEAST_TOKENS


def test_the_rate_is_what_the_cloud_keeps_up_with_a_margin() -> None:
    assert sustained_rate([1.0 + i / 10 for i in range(20)]) == READING_RATE  # of 10 tokens/s, more than one reads
    assert sustained_rate([1.0 + i * 0.18 for i in range(20)]) == 3.0  # 60 % of 5.6, rounded down
    assert sustained_rate([float(i) for i in range(20)]) == 1.0
    assert sustained_rate([1.0, 2.0]) == READING_RATE  # too few to tell


def test_cells_and_prefill_meet_before_the_clouds_tokens_have_been_shown() -> None:
    def budget(**changes) -> int | None:
        given = {"rate": 5.0, "prefill_tps": 80.0, "cells_per_s": 1000.0, "rtt_s": 0.02, **changes}
        return kv_budget(1746, **given)

    meet_s = 0.02 + 1746 / 1080
    assert budget() == math.ceil(HEADROOM * 5 * meet_s / (1 - 5 / 80))
    assert budget(cells_per_s=0.0, rtt_s=0.0) == math.ceil(HEADROOM * 5 * 1746 / 75)  # the base formula
    assert budget(cells_per_s=math.inf) == LEAST_TOKENS + 1  # the device goes on behind those that it judges
    assert budget(prefill_tps=5.0) is None


def scenario(**changes) -> DemoScenario:
    return DemoScenario(**{"max_tokens": 10, "rate": 8.0, "profile": "phone", **changes})


def test_the_default_document_comes_with_the_package() -> None:
    message = scenario().message()
    assert message.startswith("In Congress, July 4, 1776")
    assert message.endswith("our sacred Honor.\n\n" + scenario().asked())


def test_ones_own_document_and_question(tmp_path) -> None:
    path = tmp_path / "d.txt"
    path.write_text("Grüße\n", encoding="utf-8")
    assert scenario(document=path, question="Was?").message() == "Grüße\n\nWas?"


def test_a_binary_document_is_refused_by_name(tmp_path) -> None:
    path = tmp_path / "d.bin"
    path.write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ConfigurationError, match=r"d\.bin"):
        scenario(document=path).message()
