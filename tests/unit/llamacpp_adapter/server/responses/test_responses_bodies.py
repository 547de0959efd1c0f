"""Whatever a client sends to /v1/responses: never a 5xx, and every refusal is an error object."""

import json

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
from pdd_llamacpp_adapter.server.answers.service import Service
from pdd_llamacpp_adapter.server.app import create_app

ROLES = ["user", "assistant", "system", "auto", "required", "json_schema", "json_object", "object", "f"]
TYPES = ["message", "input_text", "output_text", "reasoning", "function_call", "function_call_output", "function"]
WORDS = st.sampled_from([*ROLES, *TYPES, "item_reference"])
KEYS = st.sampled_from(["type", "role", "content", "text", "name", "arguments", "call_id", "output", "parameters"])
HUGE = st.integers(300, 4300).map(lambda digits: 10**digits - 1)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | HUGE | st.floats() | st.text() | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3) | KEYS, inner, max_size=4),
    max_leaves=8,
)
ARGUMENTS = st.sampled_from(['{"a": "\\ud800"}', "[" * 100_000, '{"a": ' * 900 + "1" + "}" * 900])
CALL = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
ITEM = st.fixed_dictionaries({"role": WORDS, "content": st.text() | ANYTHING}) | st.dictionaries(KEYS, ANYTHING)
ITEM |= ARGUMENTS.map(lambda arguments: {**CALL, "arguments": arguments})
ITEM |= st.dictionaries(KEYS, ANYTHING, max_size=1).map(lambda changes: {**CALL, **changes})
FUNCTION = st.dictionaries(KEYS, ANYTHING, max_size=2).map(lambda more: {"type": "function", "name": "f", **more})
BODY = st.fixed_dictionaries(
    {"input": st.text() | st.lists(ITEM, max_size=3) | ANYTHING},
    optional={
        "stream": st.booleans(),
        "tools": st.lists(FUNCTION, max_size=2) | ANYTHING,
        "tool_choice": WORDS | FUNCTION | ANYTHING,
        "text": st.fixed_dictionaries({"format": st.dictionaries(KEYS, ANYTHING)}) | ANYTHING,
        "instructions": st.text() | ANYTHING,
        "max_output_tokens": st.integers(-1, 9) | HUGE | ANYTHING,
        "include": st.just(["message.output_text.logprobs"]) | ANYTHING,
        "metadata": ANYTHING,
        "reasoning": ANYTHING,
        "truncation": st.sampled_from(["auto", "disabled"]) | ANYTHING,
        "chat_template_kwargs": ANYTHING,
    },
)


@pytest.fixture(scope="module")
def http(fake_runtime):
    script = ["A", "", "é", "<tool_call>", '{"name": "f"}', "{}", "B"]
    with TestClient(create_app(Service(HttpLimits(), fake_runtime(script)))) as client:
        yield client


@examples(150)
@given(BODY)
def test_responses_take_anything(http, body):
    response = http.post("/v1/responses", content=json.dumps(body).encode())
    assert response.status_code in (200, 400), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.count("event: response.completed\n") == 1
    else:
        assert response.json()["status"] == "completed"
