"""Fields of chat completions besides those of every client: what is asked for is there."""

from __future__ import annotations

import json

import pytest
from openai.types.chat import ChatCompletion, ChatCompletionChunk

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
FUNCTION = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
CALL = ('[{"name": "weather", ', '"arguments": {"city"', ': "Rome"}}]')
SAID = ("<tool_call>\n", '{"name": "weather", "arguments": {"city": "Rome"}}', "\n</tool_call>")


def post(client, **fields):
    return client.post("/v1/chat/completions", json={**ASK, **fields})


def chunks_of(response):
    lines = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize(("choice", "script"), [("auto", SAID), (None, SAID), ({"name": "weather"}, CALL)])
def test_functions_are_answered_in_their_own_shape(client, service, choice, script):
    made = service(script)
    asked = {"functions": [FUNCTION], "function_call": choice}
    choice = ChatCompletion.model_validate(post(client(made), **asked).json(), strict=True).choices[0]
    assert (choice.finish_reason, choice.message.tool_calls) == ("function_call", None)
    called = choice.message.function_call
    assert (called.name, json.loads(called.arguments)) == ("weather", {"city": "Rome"})
    chunks = chunks_of(post(client(made), stream=True, **asked))
    parsed = [ChatCompletionChunk.model_validate(chunk, strict=True).choices[0] for chunk in chunks]
    calls = [one.delta.function_call for one in parsed if one.delta.function_call]
    assert (calls[0].name, "".join(call.arguments for call in calls)) == ("weather", called.arguments)
    assert parsed[-1].finish_reason == "function_call"
    grammar = made.runtime.sessions[0].request.grammar
    assert (grammar is None) == (script is SAID)


def test_functions_that_must_not_be_called_are_not(client, service):
    answer = post(client(service()), functions=[FUNCTION], function_call="none").json()["choices"][0]
    assert (answer["message"]["content"], answer["finish_reason"]) == ("Hello you", "stop")


def test_echo_begins_with_what_the_assistant_said(client, service):
    made = service()
    asked = [*ASK["messages"], {"role": "assistant", "content": "Well, "}]
    assert (
        post(client(made), messages=asked, echo=True).json()["choices"][0]["message"]["content"]
        == "Well, Hello you"
    )
    chunks = chunks_of(post(client(made), messages=asked, echo=True, stream=True))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == "Well, Hello you"
    assert post(client(made), echo=True).json()["choices"][0]["message"]["content"] == "Hello you"


def test_token_ids_are_returned_as_by_vllm(client, service):
    made = service(("A", "", "B"))
    answer = post(client(made), return_token_ids=True).json()
    assert answer["choices"][0]["token_ids"] == [65, 256, 66]
    assert answer["prompt_token_ids"] == list(made.runtime.sessions[0].request.prompt_token_ids)
    chunks = chunks_of(post(client(made), return_token_ids=True, stream=True))
    assert chunks[0]["prompt_token_ids"] == answer["prompt_token_ids"]
    assert [chunk["choices"][0]["token_ids"] for chunk in chunks] == [[], [65], [256, 66], []]
    assert "token_ids" not in post(client(made)).json()["choices"][0]


def test_tokens_can_be_called_by_their_ids(client, service):
    asked = {"logprobs": True, "top_logprobs": 1, "return_tokens_as_token_ids": True}
    content = post(client(service(("A",))), **asked).json()["choices"][0]["logprobs"]["content"][0]
    assert (content["token"], content["top_logprobs"][0]["token"]) == ("token_id:65", "token_id:65")
    chunks = chunks_of(post(client(service(("A",))), stream=True, **asked))
    assert chunks[1]["choices"][0]["logprobs"]["content"][0]["token"] == "token_id:65"


def test_the_usage_can_come_with_every_chunk(client, service):
    options = {"include_usage": True, "continuous_usage_stats": True}
    chunks = chunks_of(post(client(service()), stream=True, stream_options=options))
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 3, 3]
    assert len({chunk["usage"]["prompt_tokens"] for chunk in chunks}) == 1
    alone = chunks_of(post(client(service()), stream=True, stream_options={"continuous_usage_stats": True}))
    assert all("usage" not in chunk for chunk in alone)


def test_thoughts_can_be_left_out(client, service):
    script = ("<think>", "hm", "</think>", "Yes")
    for stream in (False, True):
        answer = post(client(service(script)), include_reasoning=False, stream=stream).text
        assert "reasoning_content" not in answer
        assert "hm" not in answer
        assert "Yes" in answer


def test_other_fields_reach_the_request(client, service):
    made = service()
    asked = {"bad_words": ["no"], "allowed_token_ids": [65], "cache_salt": "s", "include_stop_str_in_output": True}
    post(client(made), **asked, structured_outputs={"choice": ["a"]})
    request = made.runtime.sessions[0].request
    assert (request.bad_words, request.allowed_token_ids, request.cache_salt) == (("no",), (65,), "s")
    assert (request.include_stop_str_in_output, request.grammar.text) == (True, '["a"]')


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"allowed_token_ids": [257]}, "allowed_token_ids"),
        ({"allowed_token_ids": []}, "allowed_token_ids"),
        ({"bad_words": ["x"] * 129}, "bad_words"),
        ({"bad_words": ["x" * 1100]}, "bad_words"),
        ({"cache_salt": ""}, "cache_salt"),
        ({"structured_outputs": {"choice": 3}}, "structured_outputs.choice"),
    ],
)
def test_what_cannot_be_is_refused_by_its_name(client, service, fields, param):
    answer = post(client(service()), **fields)
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_words_that_are_no_json_leave_no_call(client, service):
    made = service()
    tools = [{"type": "function", "function": FUNCTION}]
    post(client(made), tools=tools, structured_outputs={"regex": "a+"})
    assert made.runtime.sessions[0].request.grammar.text == "a+"
