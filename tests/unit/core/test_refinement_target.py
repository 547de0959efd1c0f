"""How much of a prompt to keep."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError
from pdd_core.refinement.refiners.base import keep_count
from pdd_core.refinement.target import AUTO_FROM_S, LEAST_RATIO, WORTH_BELOW, RefineTarget


def ratio(setting, prompt_tokens, *, prefill_tps=100.0, n_ctx=100_000, max_tokens=100):
    target = RefineTarget.parse(setting)
    return target.ratio(prompt_tokens, prefill_tps=prefill_tps, n_ctx=n_ctx, max_tokens=max_tokens)


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("off", "off"),
        (" Auto ", "auto"),
        ("context", "context"),
        ("0.25", "0.25"),
        (".5", "0.5"),
        (0.25, "0.25"),
        (1, "1"),
        ("512 tokens", "512 tokens"),
        ("1token", "1 tokens"),
        ("2 s", "2 s"),
        ("1.5s", "1.5 s"),
    ],
)
def test_every_form_is_read_and_shown_so_that_it_can_be_read(setting, shown):
    target = RefineTarget.parse(setting)
    assert str(target) == shown
    assert RefineTarget.parse(shown) == target


@pytest.mark.parametrize(
    "setting",
    [
        *(
            "",
            "on",
            "none",
            "0",
            "-1",
            "1.5",
            "25 %",
            "0 tokens",
            "1.5 tokens",
            "0 s",
            "2 min",
            "1e-1",
            "nan",
            "inf",
        ),
        *(True, False, None, 0, 1.5, -0.5, float("nan"), float("inf"), [0.25]),
    ],
)
def test_anything_else_is_told(setting):
    with pytest.raises(ConfigurationError, match="refine must be off, auto, context, a share such as"):
        RefineTarget.parse(setting)


def test_off_is_off_even_if_the_prompt_does_not_fit():
    assert ratio("off", 5000, n_ctx=1000) is None


def test_auto_leaves_a_cheap_prompt_alone_and_keeps_what_is_ready_in_time():
    assert ratio("auto", int(AUTO_FROM_S * 100)) is None
    assert ratio("auto", 400) == 0.5
    assert ratio("auto", 5000) == LEAST_RATIO
    assert ratio("auto", 5000, prefill_tps=None) is None


def test_a_saving_too_small_is_none():
    assert ratio("auto", 210) is None
    assert ratio(WORTH_BELOW, 5000) is None
    assert ratio(0.89, 5000) == 0.89


@pytest.mark.parametrize("setting", ["512 tokens", "5.12 s"])
def test_a_number_of_tokens_and_of_seconds(setting):
    assert ratio(setting, 2048) == 0.25
    assert ratio(setting, 500) is None


def test_a_time_needs_a_speed():
    assert ratio("2 s", 5000, prefill_tps=None) is None


@pytest.mark.parametrize("setting", ["context", "auto", "1", "90000 tokens", "900 s"])
def test_a_context_too_small_needs_what_it_needs(setting):
    assert ratio(setting, 1000, prefill_tps=None, n_ctx=1050) == 0.95  # above WORTH_BELOW, and yet needed
    assert ratio(setting, 10_000, prefill_tps=None, n_ctx=1100) == 0.1  # below LEAST_RATIO
    assert ratio(setting, 1000, prefill_tps=None, n_ctx=1100) is None  # just fits


def test_where_nothing_fits_nothing_is_refined():
    assert ratio("context", 1000, n_ctx=100, max_tokens=100) is None
    assert ratio("auto", 0) is None


@given(
    setting=st.sampled_from(["auto", "context", "0.25", "512 tokens", "2 s"]),
    prompt_tokens=st.integers(1, 200_000),
    prefill_tps=st.none() | st.floats(1e-3, 1e5),
    n_ctx=st.integers(1, 200_000),
    max_tokens=st.integers(1, 5000),
)
def test_what_is_kept_is_a_share_that_fits(setting, prompt_tokens, prefill_tps, n_ctx, max_tokens):
    share = ratio(setting, prompt_tokens, prefill_tps=prefill_tps, n_ctx=n_ctx, max_tokens=max_tokens)
    if share is not None:
        assert 0 < share < 1
        assert keep_count(prompt_tokens, share) + max_tokens <= n_ctx
    elif max_tokens < n_ctx and setting in ("auto", "context"):
        assert prompt_tokens + max_tokens <= n_ctx
