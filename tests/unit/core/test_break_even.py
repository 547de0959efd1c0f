from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.break_even import break_even_budget


def test_the_formula_without_headroom() -> None:
    # 8 x 1746 / 112 = 124.7
    assert break_even_budget(1746, rate=8, prefill_tps=120, headroom=1.0) == 125
    assert break_even_budget(1746, rate=8, prefill_tps=120, headroom=1.1) == 138


@pytest.mark.parametrize("prefill_tps", [8.0, 5.0])
def test_a_device_slower_than_the_reader_never_catches_up(prefill_tps: float) -> None:
    assert break_even_budget(100, rate=8, prefill_tps=prefill_tps, headroom=1.1) is None


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
