from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_cli.demo.scenario import READING_RATE, Scenario, break_even_budget, sustained_rate
from pdd_core.errors import ConfigurationError


def test_the_formula_without_headroom() -> None:
    # 8 x 1746 / 112 = 124.7
    assert break_even_budget(1746, rate=8, prefill_tps=120, headroom=1.0) == 125
    assert break_even_budget(1746, rate=8, prefill_tps=120) == 138


@pytest.mark.parametrize("prefill_tps", [8.0, 5.0])
def test_a_device_slower_than_the_reader_never_catches_up(prefill_tps: float) -> None:
    assert break_even_budget(100, rate=8, prefill_tps=prefill_tps) is None


@given(
    prompt=st.integers(1, 100_000),
    rate=st.floats(1, 50),
    faster=st.floats(1.01, 100),
    headroom=st.floats(1, 3),
)
def test_the_device_is_ready_before_the_last_cloud_token_is_shown(prompt, rate, faster, headroom) -> None:
    prefill_tps = rate * faster
    budget = break_even_budget(prompt, rate=rate, prefill_tps=prefill_tps, headroom=headroom)
    assert budget is not None
    assert (prompt + budget) / prefill_tps <= budget / rate * (1 + 1e-9)


def test_the_rate_is_what_the_cloud_keeps_up_with_a_margin() -> None:
    assert sustained_rate([1.0 + i / 10 for i in range(20)]) == READING_RATE  # of 10 tokens/s, more than one reads
    assert sustained_rate([1.0 + i * 0.18 for i in range(20)]) == 3.0  # 60 % of 5.6, rounded down
    assert sustained_rate([float(i) for i in range(20)]) == 1.0
    assert sustained_rate([1.0, 2.0]) == READING_RATE  # too few to tell


def scenario(**changes) -> Scenario:
    return Scenario(**{"max_tokens": 10, "rate": 8.0, "profile": "phone", **changes})


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
