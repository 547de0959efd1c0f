from __future__ import annotations

import pytest

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import AnswerRequest


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("prompt_token_ids", []),
        ("max_tokens", 0),
        ("temperature", -1.0),
        ("temperature", float("nan")),
        ("top_p", 0.0),
        ("top_p", 1.1),
        ("top_k", -2),
        ("min_p", 1.5),
        ("presence_penalty", 3.0),
        ("frequency_penalty", -3.0),
        ("repetition_penalty", 0.0),
        ("repetition_penalty", 1e-300),
        ("repetition_penalty", 1e300),
        ("min_tokens", 9),
        ("decode_budget", 0),
        ("refine_ratio", 0.0),
        ("refine_ratio", 1.5),
        ("refine_ratio", True),
        ("protect", [(0, 2)]),
        ("protect", [(-1, 1)]),
        ("protect", [(1, 1)]),
        ("protect", [(0, 1, 2)]),
        ("protect", [(0.0, 1.0)]),
    ],
)
def test_a_wrong_field_is_named(field, value):
    with pytest.raises(InvalidRequest, match=f"^{field} "):
        AnswerRequest(**{"prompt_token_ids": [1], "max_tokens": 8, field: value})


@pytest.mark.parametrize(
    "fields",
    [
        {"stop": ["x" * 20_000]},
        {"bad_words": ["x" * 9_000, "y" * 9_000]},
        {"allowed_token_ids": [7] * 200_000},
        {"logit_bias": dict.fromkeys(range(200_000), 1.0)},
    ],
)
def test_what_a_cloud_would_refuse_to_keep_is_refused_by_name(fields):
    with pytest.raises(InvalidRequest, match="together, for an answer to be handed over") as refused:
        AnswerRequest(prompt_token_ids=[1], max_tokens=8, **fields)
    assert [refused.value.param] == list(fields)


def test_protected_spans_are_put_in_order():
    request = AnswerRequest(prompt_token_ids=range(9), max_tokens=1, protect=[[6, 8], (0, 2), (2, 4), (1, 3)])
    assert request.protect == ((0, 4), (6, 8))


def test_a_seed_of_minus_one_is_none_as_in_vllm():
    assert AnswerRequest(prompt_token_ids=[1], max_tokens=1, seed=-1).seed is None
    assert AnswerRequest(prompt_token_ids=[1], max_tokens=1, seed=-2).seed == -2
