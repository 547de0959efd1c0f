import pytest
from vllm_fakes import sampling_params

from pdd_core.optin import parse_opt_in
from pdd_vllm_plugin.question_window import KEY, window_of, with_window

OPT_IN = {"pdd_handoff": "h" * 32, "pdd_refine_ratio": 0.5}


def test_the_window_travels_beside_the_opt_in():
    told = with_window(sampling_params(OPT_IN), 23)
    assert window_of(told.extra_args, most=64) == 23
    assert window_of(told.extra_args, most=16) == 16
    assert parse_opt_in(told.extra_args) == parse_opt_in(OPT_IN)


def test_what_a_client_writes_there_is_written_over():
    assert with_window(sampling_params({**OPT_IN, KEY: 1}), 23).extra_args[KEY] == 23


@pytest.mark.parametrize("extra", [None, {}, {KEY: "7"}, {KEY: 0}, {KEY: -1}, {KEY: 7.0}, {KEY: True}])
def test_without_a_word_of_it_all_that_may_count_counts(extra):
    assert window_of(extra, most=64) == 64
