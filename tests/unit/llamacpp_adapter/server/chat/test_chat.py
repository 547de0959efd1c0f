import json
import re

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from pdd_core.errors import CloudLost, ContextOverflow, DeviceEngineFailed, InvalidGrammar
from pdd_llamacpp_adapter.request import Grammar, GrammarKind

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def data_of(response):
    """The `data:` payloads of a stream, decoded."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines), lines
    return [line[6:] if line == "data: [DONE]" else json.loads(line[6:]) for line in lines]


def post(client, **fields):
    return client.post("/v1/chat/completions", json={**ASK, **fields})


def test_a_whole_answer_is_a_chat_completion(client, service):
    response = post(client(service()))
    assert response.status_code == 200
    answer = ChatCompletion.model_validate(response.json(), strict=True)
    assert answer.id.startswith("chatcmpl-")
    assert answer.choices[0].message.content == "Hello you"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is None
    assert answer.usage.completion_tokens == 3
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + 3
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer.pdd["tokens"]["cloud"] == 2
    assert response.headers["x-pdd"] == "cloud=2;device=1;took_over=0.200"


def test_a_whole_answer_is_not_paced_and_a_streamed_one_is(client, service):
    made = service()
    for stream in (False, True):
        post(client(made), stream=stream)
    assert made.runtime.paced == [False, True]


def test_a_stream_comes_in_openais_order(client, service):
    response = post(client(service()), stream=True, stream_options={"include_usage": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["x-pdd"] == "mode=handoff"
    *chunks, end = data_of(response)
    assert end == "[DONE]"
    parsed = [ChatCompletionChunk.model_validate(chunk, strict=True) for chunk in chunks]
    role, *_, finish, usage = parsed
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [chunk["choices"][0]["delta"] for chunk in chunks[1:-2]] == [
        {"content": "Hel"},
        {"content": "lo"},
        {"content": " you"},
    ]
    assert role.choices[0].finish_reason is None
    assert finish.choices[0].finish_reason == "stop"
    assert chunks[-2]["choices"][0]["delta"] == {}
    assert finish.pdd["mode"] == "handoff"
    assert usage.choices == []
    assert usage.usage.completion_tokens == 3
    assert {chunk.id for chunk in parsed} == {role.id}
    # openai: all other chunks have a usage field too, with a null value
    assert all("usage" in chunk and chunk["usage"] is None for chunk in chunks[:-1])
    assert sum("pdd" in chunk for chunk in chunks) == 1


def test_without_include_usage_no_chunk_has_usage(client, service):
    *chunks, _ = data_of(post(client(service()), stream=True))
    assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)


def test_withheld_text_comes_after_the_last_token(client, service):
    made = service(session={"withheld": " STO", "finish_reason": "length"})
    answer = post(client(made)).json()
    assert answer["choices"][0]["message"]["content"] == "Hello you STO"
    assert answer["choices"][0]["finish_reason"] == "length"
    chunks = data_of(post(client(made), stream=True))
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in chunks[:-1]) == "Hello you STO"


def test_the_stop_string_is_named(client, service):
    answer = post(client(service(session={"stop_reason": "END"})), stop="END").json()
    assert answer["choices"][0]["stop_reason"] == "END"


def test_sampling_fields_reach_the_session(client, service):
    made = service()
    fields = {
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 7,
        "stop": ["a", "b"],
        "presence_penalty": 1,
        "frequency_penalty": -1,
        "logit_bias": {"65": -100},
        "max_tokens": 5,
        "max_completion_tokens": 6,
        "top_k": 3,
        "min_p": 0.1,
        "repetition_penalty": 1.1,
        "min_tokens": 2,
        "stop_token_ids": [9],
        "ignore_eos": True,
    }
    assert post(client(made), **fields).status_code == 200
    request = made.runtime.sessions[0].request
    assert request.max_tokens == 6
    assert request.stop == ("a", "b")
    assert dict(request.logit_bias) == {65: -100.0}
    for name in (
        "temperature",
        "top_p",
        "seed",
        "top_k",
        "min_p",
        "repetition_penalty",
        "min_tokens",
        "ignore_eos",
    ):
        assert getattr(request, name) == fields[name]


def test_null_is_the_same_as_absent_and_defaults_are_openais(client, service):
    made = service()
    names = (
        "temperature",
        "top_p",
        "stop",
        "max_tokens",
        "seed",
        "n",
        "logprobs",
        "tools",
        "stream",
        "logit_bias",
    )
    assert post(client(made), **dict.fromkeys((*names, "stream_options", "response_format"))).status_code == 200
    request = made.runtime.sessions[0].request
    assert (request.temperature, request.top_p, request.stop, request.logprobs) == (1.0, 1.0, (), None)
    assert request.max_tokens == 4096 - len(request.prompt_token_ids)


def test_unknown_fields_and_those_without_meaning_are_ignored(client, service):
    extras = {"store": True, "user": "u", "metadata": {"a": "b"}, "service_tier": "auto", "never_heard_of": [1]}
    assert post(client(service()), **extras).status_code == 200


@pytest.mark.parametrize(
    ("response_format", "grammar"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Grammar(GrammarKind.JSON_OBJECT)),
        (
            {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "integer"}}},
            Grammar(GrammarKind.JSON, '{"type": "integer"}'),
        ),
    ],
)
def test_a_response_format_is_a_grammar(client, service, response_format, grammar):
    made = service()
    assert post(client(made), response_format=response_format).status_code == 200
    assert made.runtime.sessions[0].request.grammar == grammar


def test_text_parts_and_roles_reach_the_template(client, service):
    made = service()
    messages = [
        {"role": "developer", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]},
        {"role": "assistant", "content": "ok"},
        {"role": "user", "content": "go"},
    ]
    post(client(made), messages=messages)
    prompt = bytes(made.runtime.sessions[0].request.prompt_token_ids).decode()
    assert prompt == "<system>Be brief.\n<user>one\ntwo\n<assistant>ok\n<user>go\n<assistant>"


def test_logprobs_name_every_token_and_its_maker(client, service):
    script = ("A", "", "B")  # the second is a control token
    answer = ChatCompletion.model_validate(
        post(client(service(script)), logprobs=True, top_logprobs=2).json(), strict=True
    )
    content = answer.choices[0].logprobs.content
    assert [entry.token for entry in content] == ["A", "<|end|>", "B"]
    assert [entry.source for entry in content] == ["cloud", "cloud", "device"]
    assert content[0].bytes == [65]
    assert [(top.token, top.logprob) for top in content[0].top_logprobs] == [("A", -0.5), ("B", -1.5)]


def test_streamed_logprobs_lose_no_token(client, service):
    *chunks, _ = data_of(post(client(service(("A", "", "B", ""))), logprobs=True, stream=True))
    logprobs = [chunk["choices"][0]["logprobs"] for chunk in chunks]
    tokens = [entry["token"] for found in logprobs if found for entry in found["content"]]
    assert tokens == ["A", "<|end|>", "B", "<|end|>"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


def test_a_tool_call_ends_the_answer_with_tool_calls(client, service):
    script = ("<tool_call>", '{"name": "get_time", ', '"arguments": {"zone": "UTC"}}', "</tool_call>")
    made = service(script)
    answer = ChatCompletion.model_validate(post(client(made), tools=[TOOL]).json(), strict=True)
    (call,) = answer.choices[0].message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("get_time", {"zone": "UTC"})
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None
    *chunks, _ = data_of(post(client(made), tools=[TOOL], stream=True))
    fragments = [c for chunk in chunks for c in chunk["choices"][0]["delta"].get("tool_calls", [])]
    assert fragments[0]["type"] == "function"
    assert fragments[0]["id"]
    assert "".join(f["function"]["arguments"] for f in fragments) == call.function.arguments
    assert chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"


FORCED = {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "get_time"}}}


@pytest.mark.parametrize(
    ("script", "arguments", "reason"),
    [
        (('[{"name": "get_time", "arguments": ', '{\n\n"'), '{\n\n"', "stop"),
        (('[{"name": "get_time", "arguments": ', "{}"), "{}", "tool_calls"),
        (('[\n\n{\n\n"name',), None, "stop"),
    ],
)
def test_a_forced_call_that_a_stop_string_cuts_is_not_told_as_a_whole_one(
    client, service, script, arguments, reason
):
    made = service(script, session={"stop_reason": "zone"})
    (choice,) = post(client(made), **FORCED, stop="zone").json()["choices"]
    calls = choice["message"].get("tool_calls", [])
    assert [call["function"]["arguments"] for call in calls] == ([] if arguments is None else [arguments])
    assert (choice["message"]["content"] or "", choice["finish_reason"]) == ("", reason)
    *chunks, _ = data_of(post(client(made), **FORCED, stop="zone", stream=True))
    assert not any(chunk["choices"][0]["delta"].get("content") for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == reason


@pytest.mark.parametrize("logprobs", [False, True])
def test_a_forced_call_says_in_no_chunk_that_a_text_has_begun(client, service, logprobs):
    script = ('[{"name": "get_time", "arguments": ', "{}", "}]", "")
    *chunks, _ = data_of(post(client(service(script)), **FORCED, stream=True, logprobs=logprobs))
    deltas = [ChatCompletionChunk.model_validate(chunk).choices[0].delta for chunk in chunks]
    assert deltas[0].role == "assistant"
    assert [delta.content for delta in deltas] == [None] * len(deltas)
    assert any(delta.tool_calls for delta in deltas)
    if logprobs:
        told = [chunk["choices"][0]["logprobs"] for chunk in chunks if chunk["choices"][0]["logprobs"]]
        assert sum(len(part["content"]) for part in told) == len(script)


CITY = {
    "type": "json_schema",
    "json_schema": {"name": "city", "schema": {"type": "object", "properties": {"city": {"type": "string"}}}},
}


@pytest.mark.parametrize(
    ("script", "content", "reason"),
    [
        (('{"name": "get_', 'time", "arguments": {}}'), None, "tool_calls"),
        (('{"city": ', '"Rome"}'), '{"city": "Rome"}', "stop"),
    ],
)
def test_an_answer_with_tools_and_a_format_is_a_call_or_has_the_format(client, service, script, content, reason):
    made = service(script)
    (choice,) = post(client(made), tools=[TOOL], response_format=CITY).json()["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (content, reason)
    assert bool(choice["message"].get("tool_calls")) is (reason == "tool_calls")
    request = made.runtime.sessions[0].request
    assert {"$ref": "#/$defs/answer"} in json.loads(request.grammar.text)["anyOf"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"temperature": 3}, "temperature"),
        ({"temperature": "warm"}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"repetition_penalty": 1e-300}, "repetition_penalty"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": ["hi"]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "x"}]}, "messages[0].role"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0]"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}]}]}, "messages[0].tool_calls[0]"),
        ({"messages": [{"role": "assistant", "function_call": "f"}]}, "messages[0].function_call"),
        ({"messages": [{"role": "assistant", "function_call": {"name": 3}}]}, "messages[0].function_call"),
        ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
        ({"stop": [""]}, "stop"),
        ({"stop": [1]}, "stop[0]"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logit_bias": {"300": 1}}, "logit_bias"),
        ({"logit_bias": {"3": 101}}, "logit_bias"),
        ({"stop_token_ids": [-1]}, "stop_token_ids"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": -1}, "max_completion_tokens"),
        ({"min_tokens": 9, "max_tokens": 5}, "min_tokens"),
        ({"response_format": {"type": "xml"}}, "response_format.type"),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {}}}, "response_format.json_schema.schema"),
        ({"stream_options": 3}, "stream_options"),
        ({"tools": [{"type": "magic"}]}, "tools[0].type"),
        ({"functions": [{}]}, "functions[0].name"),
        ({"functions": [{"name": "f"}], "function_call": "sometimes"}, "function_call"),
        ({"functions": [{"name": "f"}], "function_call": {"name": "g"}}, "function_call"),
        ({"functions": [{"name": "f"}], "tools": [{"type": "function", "function": {"name": "f"}}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"most": 1}}, "chat_template_kwargs"),
        ({"seed": 2**70}, "seed"),
    ],
)
def test_a_field_that_cannot_be_obeyed_is_a_400_that_names_it(client, service, fields, param):
    made = service()
    response = post(client(made), **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["param"] == param
    assert error["type"] == "invalid_request_error"
    assert set(error) == {"message", "type", "param", "code"}
    assert response.headers["x-should-retry"] == "false"
    assert made.runtime.sessions == []


LONG = [{"role": "user", "content": "x" * 5000}]
TOO_LONG = re.compile(
    r"This model's maximum context length is 4096 tokens\. However, "
    r"(your messages resulted in (?P<alone>\d+) tokens: the prompt is too long"
    r"|you requested (?P<all>\d+) tokens \((?P<prompt>\d+) in the messages, (?P<answer>\d+) in the completion\): "
    r"the prompt is too long for such a completion)\."
)


@pytest.mark.parametrize("fields", [{"max_tokens": 5000}, {"messages": LONG}, {"messages": LONG, "max_tokens": 7}])
def test_a_prompt_without_room_is_refused_in_the_words_that_clients_look_for(client, service, fields):
    response = post(client(service()), **fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "context_length_exceeded")
    told = TOO_LONG.fullmatch(error["message"])
    if "max_tokens" in fields:
        assert int(told["all"]) == int(told["prompt"]) + int(told["answer"])
        assert int(told["answer"]) == fields["max_tokens"]
    else:
        assert int(told["alone"]) > 5000


@pytest.mark.parametrize(
    ("refusal", "status", "code"),
    [
        (InvalidGrammar("no such thing", param="response_format"), 400, None),
        (ContextOverflow("too long"), 400, "context_length_exceeded"),
        (DeviceEngineFailed("-3"), 503, "device_unavailable"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_session_is_an_http_error(client, service, refusal, status, code, stream):
    response = post(client(service(session={"refuses": refusal})), stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_before_the_first_token_is_an_http_error(client, service, stream):
    response = post(client(service([CloudLost("gone")])), stream=stream)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "cloud_unavailable")


def test_a_failure_after_the_first_token_is_an_event(client, service):
    *chunks, error, done = data_of(post(client(service(["A", CloudLost("gone")])), stream=True))
    assert chunks[-1]["choices"][0]["delta"] == {"content": "A"}
    assert error == {
        "error": {"message": "gone", "type": "unavailable_error", "param": None, "code": "cloud_unavailable"}
    }
    assert done == "[DONE]"


@pytest.mark.parametrize("stream", [False, True])
def test_a_mistake_of_the_program_is_a_500_without_its_words(client, service, stream, caplog):
    response = post(client(service([ZeroDivisionError("secret")])), stream=stream)
    assert response.status_code == 500
    assert "secret" not in response.text
    assert response.json()["error"]["code"] == "internal_error"
    assert "ZeroDivisionError" in caplog.text


def test_a_parser_that_fails_does_not_break_the_stream(client, service, monkeypatch):
    from pdd_llamacpp_adapter.server.prompts.answer_parser import AnswerParser

    def broken(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(AnswerParser, "finish", broken)
    *_, error, done = data_of(post(client(service()), stream=True))
    assert (error["error"]["code"], done) == ("internal_error", "[DONE]")
    monkeypatch.setattr(AnswerParser, "push", broken)
    assert post(client(service()), stream=True).status_code == 500


def test_a_model_without_chat_template_refuses_chats(client, service):
    from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate

    made = service()

    class NoTemplate:
        def __get__(self, *_):
            return ChatTemplate(None, bos="", eos="")

    type(made.runtime.vocab).chat_template, kept = NoTemplate(), type(made.runtime.vocab).__dict__["chat_template"]
    try:
        error = post(client(made)).json()["error"]
    finally:
        type(made.runtime.vocab).chat_template = kept
    assert error["code"] == "no_chat_template"


def test_answers_are_told_apart_by_route_and_app(client, service):
    made = service()
    with client(made) as http:
        for fields, agent in (
            ({}, "notes/1.2"),
            ({"user": "tenant 7"}, "notes/1.2"),
            ({"user": "tenant 7", "prompt_cache_key": "mail"}, "notes/1.2"),
            ({"user": 7}, "notes/1.2"),
            ({"prompt_cache_key": "x" * 5000}, ""),
        ):
            body = {"messages": [{"role": "user", "content": "Hi"}], **fields}
            response = http.post("/v1/chat/completions", json=body, headers={"user-agent": agent})
            assert response.status_code == 200
    names = [group.removeprefix("/v1/chat/completions ") for group in made.runtime.groups]
    assert names == ["notes/1.2", "tenant 7", "mail", "notes/1.2", "x" * 200]
