"""Whatever a client sends: never a 5xx, never a hang, and every refusal is an error object."""

import json
from contextlib import contextmanager

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st
from reconnecting import PDD
from starlette.testclient import TestClient

from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
from pdd_llamacpp_adapter.server.answers.service import Service
from pdd_llamacpp_adapter.server.app import create_app
from pdd_llamacpp_adapter.server.wire import field_table
from pdd_llamacpp_adapter.server.wire.field_table import Fate

HUGE = st.integers(300, 4300).map(lambda digits: 10**digits - 1)
"""The longest that Python reads: with one digit more it cannot be written."""
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | HUGE
    | st.integers(-3, 30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["user", "system", "tool", "text", "json_object", "function", "auto", "required", "tiny"])
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.text(max_size=5) | st.sampled_from(["type", "role", "content", "text", "name", "function"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=10,
)
TEXT = st.text(max_size=10)
PART = st.fixed_dictionaries({"type": st.just("text"), "text": TEXT})
MESSAGE = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "system", "developer", "assistant"]), "content": TEXT | st.lists(PART)},
    optional={"name": TEXT},
)
HALF = st.sampled_from(["\ud800", "\udfff x"])
"""Surrogates without their partners: JSON can spell them, UTF-8 cannot."""
ARGUMENTS = (
    TEXT
    | st.dictionaries(TEXT | HALF, TEXT | HALF | HUGE, max_size=2).map(json.dumps)
    | st.sampled_from(["[" * 100_000, '{"a": ' * 900 + "1" + "}" * 900])
)
CALL = st.fixed_dictionaries(
    {"function": st.fixed_dictionaries({"name": TEXT, "arguments": ARGUMENTS})}, optional={"id": TEXT}
)
PAST = (
    MESSAGE
    | st.fixed_dictionaries(
        {"role": st.just("assistant"), "tool_calls": st.lists(CALL, max_size=2)}, optional={"content": TEXT}
    )
    | st.fixed_dictionaries({"role": st.just("tool"), "tool_call_id": TEXT, "content": TEXT})
)
GOOD = {
    "model": st.sampled_from(["tiny", "default"]),
    "stream": st.booleans(),
    "stream_options": st.fixed_dictionaries(
        {"include_usage": st.booleans(), "continuous_usage_stats": st.booleans()}
    ),
    "max_tokens": st.integers(1, 100),
    "temperature": st.floats(0, 2),
    "top_p": st.floats(0.01, 1),
    "stop": TEXT.filter(bool) | st.lists(TEXT.filter(bool), max_size=4),
    "seed": st.integers(0, 100),
    "n": st.just(1),
    "logit_bias": st.dictionaries(st.integers(0, 256).map(str), st.floats(-100, 100), max_size=3),
    "presence_penalty": st.floats(-2, 2),
    "frequency_penalty": st.floats(-2, 2),
    "top_k": st.integers(-1, 50),
    "min_p": st.floats(0, 1),
    "repetition_penalty": st.floats(0.5, 2),
    "stop_token_ids": st.lists(st.integers(0, 256), max_size=3),
    "ignore_eos": st.booleans(),
    "bad_words": st.lists(TEXT.filter(str.strip), max_size=3),
    "allowed_token_ids": st.lists(st.integers(0, 256), min_size=1, max_size=3),
    "include_stop_str_in_output": st.booleans(),
    "return_token_ids": st.booleans(),
    "return_tokens_as_token_ids": st.booleans(),
    "user": TEXT,
}
CHAT = {
    **GOOD,
    "messages": st.lists(PAST, min_size=1, max_size=4),
    "logprobs": st.booleans(),
    "response_format": st.sampled_from([{"type": "text"}, {"type": "json_object"}]),
    "store": st.booleans(),
    "echo": st.booleans(),
    "include_reasoning": st.booleans(),
    "pdd": PDD,
}
OTHER = {name: values for name, values in CHAT.items() if name != "messages"}
COMPLETION = {
    **GOOD,
    "prompt": TEXT.filter(bool) | st.lists(st.integers(0, 256), min_size=1, max_size=9),
    "echo": st.booleans(),
}
WORDS = ["A", "", "é", "\n", "<tool_call>", "{}", "B"]


def bodies(fields, table):
    """Good values for some fields, and anything at all for some."""
    good = st.fixed_dictionaries({}, optional=fields)
    names = [
        *fields,
        "tools",
        "tool_choice",
        "response_format",
        "top_logprobs",
        "logprobs",
        "chat_template_kwargs",
        *(name for name, row in table.items() if row.fate is Fate.OBEYED and "." not in name),
    ]
    bad = st.dictionaries(st.sampled_from(names), ANYTHING, max_size=3)
    return st.tuples(good, bad).map(lambda both: {**both[0], **both[1]})


@contextmanager
def answering(runtime):
    service = Service(HttpLimits(), runtime)
    with TestClient(create_app(service)) as client:
        yield client
    assert not service._answers
    assert (service.queue.running, service.queue.waiting) == (0, 0)


@pytest.fixture(scope="module")
def http(fake_runtime):
    with answering(fake_runtime(WORDS)) as client:
        yield client


@pytest.fixture(scope="module")
def roomy(fake_runtime):
    """One whose context holds all that `CHAT` may draw."""
    runtime = fake_runtime(WORDS)
    runtime.n_ctx = 2**20
    with answering(runtime) as client:
        yield client


def check(response):
    assert response.status_code in (200, 400, 404), response.text
    if response.status_code != 200:
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert error["message"]
    elif response.headers["content-type"].startswith("text/event-stream"):
        assert response.text.endswith("data: [DONE]\n\n")
        assert '"error":' not in response.text
    else:
        assert response.json()["choices"][0]["finish_reason"]


@examples(150)
@given(body=bodies(CHAT, field_table.CHAT), name=st.sampled_from(["", "a", "b"]))
def test_chat_completions_take_anything(http, body, name):
    """Also if the stream is kept."""
    answer = http.post(
        "/v1/chat/completions", content=json.dumps(body).encode(), headers={"X-Conversation-Id": name}
    )
    check(answer)
    if name and answer.headers["content-type"].startswith("text/event-stream"):
        assert http.get(f"/v1/stream/{name}").content == answer.content


@given(body=bodies(COMPLETION, field_table.COMPLETIONS))
def test_completions_take_anything(http, body):
    check(http.post("/v1/completions", content=json.dumps(body).encode()))


@examples(60)
@given(body=ANYTHING)
def test_a_body_can_be_any_json(http, body):
    check(http.post("/v1/chat/completions", content=json.dumps(body).encode()))


@examples(60)
@given(fields=st.fixed_dictionaries({"messages": CHAT["messages"]}, optional=OTHER))
def test_a_good_request_is_answered(roomy, fields):
    response = roomy.post("/v1/chat/completions", content=json.dumps(fields).encode())
    assert response.status_code == 200, response.text
    check(response)


@examples(60)
@given(pdd=st.dictionaries(st.sampled_from(["tokens", "rate", "plan", "refine", ""]), ANYTHING, max_size=3))
def test_the_field_pdd_takes_anything(http, pdd):
    body = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "pdd": pdd}
    check(http.post("/v1/chat/completions", content=json.dumps(body).encode()))


@examples(60)
@given(data=st.binary(max_size=60))
def test_a_body_can_be_any_bytes(http, data):
    assert http.post("/v1/completions", content=data).status_code == 400
