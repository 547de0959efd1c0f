"""Every field of OpenAI's API has its row, and the row says what happens. vLLM's: tests/integration/cloud."""

from __future__ import annotations

import pytest
from openai.types import completion_create_params as completions
from openai.types.chat import ChatCompletionStreamOptionsParam
from openai.types.chat import completion_create_params as chat
from openai.types.responses import ResponseTextConfigParam
from openai.types.responses import response_create_params as responses
from starlette.testclient import TestClient

from pdd_llamacpp_adapter.server.app import create_app
from pdd_llamacpp_adapter.server.chat.chat_request import ChatRequest
from pdd_llamacpp_adapter.server.completions.completion_request import CompletionRequest
from pdd_llamacpp_adapter.server.responses.response_request import ResponsesRequest
from pdd_llamacpp_adapter.server.wire.field_table import CHAT, COMPLETIONS, RESPONSES, Fate

BODIES = {
    "/v1/chat/completions": (ChatRequest, {"messages": [{"role": "user", "content": "Hi"}]}),
    "/v1/completions": (CompletionRequest, {"prompt": "Hi"}),
    "/v1/responses": (ResponsesRequest, {"input": "Hi"}),
}
OPENAI = [
    (chat.CompletionCreateParamsBase, CHAT),
    (completions.CompletionCreateParamsBase, COMPLETIONS),
    (responses.ResponseCreateParamsBase, RESPONSES),
]
REFUSED = [
    (route, name, row) for route, (model, _) in BODIES.items() for name, row in model.fates.items()
    if row.fate is Fate.REFUSED
]  # fmt: skip


@pytest.mark.parametrize(("params", "table"), OPENAI, ids=["chat", "completions", "responses"])
def test_every_field_of_openai_s_has_a_row(params, table):
    assert set(params.__annotations__) - table.keys() == set()
    assert {f"stream_options.{name}" for name in ChatCompletionStreamOptionsParam.__annotations__} <= table.keys()
    if table is RESPONSES:
        assert {f"text.{name}" for name in ResponseTextConfigParam.__annotations__} <= table.keys()


@pytest.mark.parametrize("route", BODIES)
def test_what_is_obeyed_is_read_and_nothing_else_is(route):
    model, _ = BODIES[route]
    obeyed = {name for name, row in model.fates.items() if row.fate is Fate.OBEYED and "." not in name}
    read = set(model.model_fields)
    assert read == obeyed


@pytest.mark.parametrize("table", [CHAT, COMPLETIONS, RESPONSES], ids=["chat", "completions", "responses"])
def test_every_refusal_and_everything_without_a_meaning_has_a_reason(table):
    assert [name for name, row in table.items() if row.fate is not Fate.OBEYED and not row.note] == []


def body(route, name, value):
    outer, _, inner = name.partition(".")
    return {
        "model": "tiny",
        **BODIES[route][1],
        outer: {inner: value, **OTHERS.get(outer, {})} if inner else value,
    }


OTHERS = {"structured_outputs": {"choice": ["a"]}, "text": {}}


@pytest.fixture(scope="module")
def post(request):
    from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
    from pdd_llamacpp_adapter.server.answers.service import Service

    runtime = request.getfixturevalue("fake_runtime")
    client = TestClient(create_app(Service(HttpLimits(), runtime())), base_url="http://127.0.0.1")
    return lambda route, name, value: client.post(route, json=body(route, name, value))


@pytest.mark.parametrize(
    ("route", "name", "row"), REFUSED, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_refused_is_named_unless_it_asks_for_nothing(post, route, name, row):
    for value in (None, *row.passes):
        assert post(route, name, value).status_code == 200, value
    for asking in ({"x": 1}, 7, True):
        if asking in row.passes or ("." in name and name.partition(".")[0] not in OTHERS):
            continue
        answer = post(route, name, asking)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, name)
        assert answer.json()["error"]["code"] == "unsupported_parameter"


def test_a_field_that_nobody_knows_is_ignored(post):
    assert post("/v1/chat/completions", "x_future", {"a": 1}).status_code == 200


@pytest.mark.parametrize(
    ("route", "fields", "param"),
    [
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/responses", {"text": {"format": {"type": "json_object"}}}, "text.format"),
        ("/v1/responses", {"structured_outputs": {"choice": ["a"]}}, "structured_outputs.choice"),
    ],
)
def test_a_grammar_that_cannot_be_compiled_is_named_as_the_route_does(client, service, route, fields, param):
    made = service()
    made.runtime.refuses_grammars = True
    answer = client(made).post(route, json={"model": "tiny", **BODIES[route][1], **fields})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)
