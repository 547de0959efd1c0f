"""What a client leaves out is the model's own way; what it gives counts, whatever the value."""

import pytest
from openai.types.responses import Response

from pdd_core.sampling_defaults import DefaultSamplingParams

OWN = {
    "temperature": 0.6,
    "top_p": 0.9,
    "top_k": 20,
    "min_p": 0.1,
    "presence_penalty": 1.5,
    "frequency_penalty": 0.5,
    "repetition_penalty": 1.1,
}
NEUTRAL = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}
ROUTES = {
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "Hi"}]},
    "/v1/completions": {"prompt": "Hi"},
    "/v1/responses": {"input": "Hi"},
}


@pytest.fixture(params=ROUTES)
def asked(request, client, service):
    """Post to each route; returns what the session was asked for."""

    def ask(**fields):
        made = service()
        made.runtime.defaults = DefaultSamplingParams(**OWN)
        response = client(made).post(request.param, json={**ROUTES[request.param], **fields})
        assert response.status_code == 200, response.text
        [session] = made.runtime.sessions
        return {name: getattr(session.request, name) for name in OWN}

    return ask


def test_what_is_left_out_is_the_models_own(asked):
    assert asked() == OWN


def test_null_is_left_out_as_in_vllm(asked):
    assert asked(**dict.fromkeys(OWN)) == OWN


@pytest.mark.parametrize("name", OWN)
def test_what_is_given_counts_even_if_it_is_what_openai_would_take(asked, name):
    assert asked(**{name: NEUTRAL[name]}) == {**OWN, name: NEUTRAL[name]}


def test_a_model_without_a_way_of_its_own_has_openais(client, service):
    made = service()
    client(made).post("/v1/completions", json={"prompt": "Hi"})
    [session] = made.runtime.sessions
    assert {name: getattr(session.request, name) for name in OWN} == NEUTRAL


def test_a_response_says_how_tokens_were_chosen(client, service):
    made = service()
    made.runtime.defaults = DefaultSamplingParams(**OWN)
    answer = Response.model_validate(client(made).post("/v1/responses", json={"input": "Hi", "top_p": 0.5}).json())
    assert (answer.temperature, answer.top_p) == (0.6, 0.5)
