from __future__ import annotations

import pytest

from pdd_cli.demo.scenario import READING_RATE, DemoScenario, sustained_rate
from pdd_core.errors import ConfigurationError


def test_the_rate_is_what_the_cloud_keeps_up_with_a_margin() -> None:
    assert sustained_rate([1.0 + i / 10 for i in range(20)]) == READING_RATE  # of 10 tokens/s, more than one reads
    assert sustained_rate([1.0 + i * 0.18 for i in range(20)]) == 3.0  # 60 % of 5.6, rounded down
    assert sustained_rate([float(i) for i in range(20)]) == 1.0
    assert sustained_rate([1.0, 2.0]) == READING_RATE  # too few to tell


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
