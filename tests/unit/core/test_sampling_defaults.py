import math

import pytest

from pdd_core.sampling_defaults import DefaultSamplingParams


def test_the_models_own_values_are_kept_and_the_limit_is_no_sampling_parameter():
    made = DefaultSamplingParams.of({"temperature": 0.6, "top_k": 20, "max_tokens": 512, "else": 1}, source="m")
    assert made.given() == {"temperature": 0.6, "top_k": 20}
    assert made.max_tokens == 512


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"top_p": 0.0},
        {"top_k": 2**40},
        {"min_p": "much"},
        {"repetition_penalty": 0.0},
        {"max_tokens": 0},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_no_request_could_have_is_left_out_and_named(wrong, caplog):
    made = DefaultSamplingParams.of({**wrong, "presence_penalty": 1.5}, source="the file")
    assert made.model_dump(exclude_none=True) == {"presence_penalty": 1.5}
    assert "the file" in caplog.text
    assert next(iter(wrong)) in caplog.text


def test_a_file_may_write_numbers_as_text():
    assert DefaultSamplingParams.of({"temperature": "0.600000", "top_k": "20"}, source="m").given() == {
        "temperature": 0.6,
        "top_k": 20,
    }
