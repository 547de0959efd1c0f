"""A sampling parameter is named once: what the cloud is sent and what the server takes have it by themselves."""

from __future__ import annotations

from dataclasses import fields

import pytest

from pdd_llamacpp_adapter.cloud.cloud_request import body_fields
from pdd_llamacpp_adapter.request import AnswerRequest, SamplingParams
from pdd_llamacpp_adapter.server.chat.chat_request import ChatRequest
from pdd_llamacpp_adapter.server.completions.completion_request import CompletionRequest
from pdd_llamacpp_adapter.server.responses.response_request import ResponsesRequest
from pdd_llamacpp_adapter.server.wire.sampling_fields import Sampling

NAMES = [parameter.name for parameter in fields(SamplingParams)]
BODIES = [
    ChatRequest(messages=[{"role": "user", "content": "Hi"}]),
    CompletionRequest(prompt="Hi"),
    ResponsesRequest(input="Hi"),
]
SET = {
    "bool": True,
    "float": 0.5,
    "int": 3,
    "int | None": 0,
    "Sequence[int]": [7],
    "Sequence[int] | None": [7, 9],
    "Sequence[str]": ["END"],
    "Mapping[int, float]": {"7": 1.0},
}


def asked(body):
    return body.chat_input().sampling if hasattr(body, "chat_input") else body.sampling()


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_every_body_takes_every_parameter(body):
    given = {parameter.name: SET[str(parameter.type)] for parameter in fields(SamplingParams)}
    sampling = asked(type(body)(**body.model_dump(exclude_unset=True), **given))
    request = AnswerRequest(
        prompt_token_ids=[1], max_tokens=5, **{name: getattr(sampling, name) for name in NAMES}
    )
    sent = body_fields(request, None)
    assert {name: list(v) if isinstance(v, tuple) else v for name, v in sent.items() if name in NAMES} == {
        name: {7: 1.0} if value == {"7": 1.0} else value for name, value in given.items()
    }


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_parameter_that_is_not_given_has_openais_default(body):
    sampling, defaults = asked(body), Sampling()
    assert {name: getattr(sampling, name) for name in NAMES} == {name: getattr(defaults, name) for name in NAMES}
    assert sampling.left_out == set(NAMES), "which is the model's to fill"


def test_a_parameter_at_its_default_is_sent_unless_it_is_empty():
    sent = body_fields(AnswerRequest(prompt_token_ids=[1], max_tokens=5), None)
    assert set(NAMES) - sent.keys() == {
        *("seed", "stop", "logit_bias", "ignore_eos"),
        *("bad_words", "allowed_token_ids", "include_stop_str_in_output"),
    }


@pytest.mark.parametrize("body", BODIES, ids=lambda body: type(body).__name__)
def test_a_body_refuses_a_parameter_of_another_type_by_its_name(body):
    for name in NAMES:
        with pytest.raises(ValueError, match=name):
            type(body)(**body.model_dump(exclude_unset=True), **{name: {"x": "y"}})
