import json

import pytest
from pydantic import ValidationError

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.server.responses.input_items import chat_messages
from pdd_llamacpp_adapter.server.responses.response_request import ResponsesRequest

CITY = {"type": "object", "properties": {"city": {"type": "string"}}}
WEATHER = {"type": "function", "name": "weather", "description": "The weather", "parameters": CITY, "strict": True}


def call(call_id, **fields):
    return {"type": "function_call", "call_id": call_id, "name": "weather", "arguments": "{}", **fields}


def output(call_id, value="22"):
    return {"type": "function_call_output", "call_id": call_id, "output": value}


def asked(**fields):
    return ResponsesRequest.model_validate({"input": "Hi", **fields})


def test_a_string_is_the_users_message():
    assert chat_messages("Hi") == [{"role": "user", "content": "Hi"}]


def test_instructions_come_first_and_join_the_systems_other_messages():
    items = [
        {"role": "developer", "content": "Be kind."},
        {"type": "message", "role": "system", "content": [{"type": "input_text", "text": "Be true."}]},
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "Now rhyme."},
    ]
    assert chat_messages(items, "Be brief.") == [
        {"role": "system", "content": "Be brief.\n\nBe kind.\n\nBe true."},
        {"role": "user", "content": "Hi"},
        {"role": "system", "content": "Now rhyme."},
    ]


def test_what_a_response_put_out_can_be_put_in():
    items = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "Rome"}, {"type": "input_text", "text": "Oslo"}],
        },
        {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm"}]},
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "Let me see.", "annotations": []}],
        },
        call("call_1", id="fc_1", status="completed"),
        call("call_2"),
        output("call_1"),
        output("call_2", [{"type": "input_text", "text": "1"}]),
        call("call_3"),
    ]

    def made(call_id):
        return {"id": call_id, "type": "function", "function": {"name": "weather", "arguments": "{}"}}

    assert chat_messages(items) == [
        {"role": "user", "content": [{"type": "text", "text": "Rome"}, {"type": "text", "text": "Oslo"}]},
        {
            "role": "assistant",
            "content": [{"type": "text", "text": "Let me see."}],
            "tool_calls": [made("call_1"), made("call_2")],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "22"},
        {"role": "tool", "tool_call_id": "call_2", "content": [{"type": "text", "text": "1"}]},
        {"role": "assistant", "content": None, "tool_calls": [made("call_3")]},
    ]


@pytest.mark.parametrize(
    ("item", "param"),
    [
        ("Hi", "input[1]"),
        ({"content": "Hi"}, "input[1].role"),
        ({"role": "robot", "content": "Hi"}, "input[1].role"),
        ({"role": ["user"], "content": "Hi"}, "input[1].role"),
        ({"role": "user"}, "input[1].content"),
        ({"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": ["input_text"]}]}, "input[1].content[0]"),
        ({"role": "user", "content": ["Hi"]}, "input[1].content[0]"),
        ({"role": "user", "content": [{"type": "input_text"}]}, "input[1].content[0].text"),
        ({"type": "item_reference", "id": "msg_1"}, "input[1]"),
        ({"type": "computer_call"}, "input[1].type"),
        ({"type": None, "role": "user", "content": "Hi"}, "input[1].type"),
        ({"type": ["message"]}, "input[1].type"),
        (call(None), "input[1].call_id"),
        (call("call_1", arguments={}), "input[1].arguments"),
        (output("call_1", None), "input[1].output"),
        ({"type": "function_call_output", "output": "22"}, "input[1].call_id"),
    ],
)
def test_an_item_that_is_none_is_refused_by_its_place(item, param):
    with pytest.raises(InvalidRequest) as refused:
        chat_messages([{"role": "user", "content": "Hi"}, item])
    assert refused.value.param == param


@pytest.mark.parametrize("items", [[], [{"role": "system", "content": "Be brief."}], [{"type": "reasoning"}]])
def test_an_input_without_anything_to_answer_is_refused(items):
    with pytest.raises(InvalidRequest) as refused:
        chat_messages(items)
    assert refused.value.param == "input"


def test_fields_become_those_of_a_chat():
    schema = {"type": "object", "properties": {}}
    chat = asked(
        tools=[WEATHER],
        tool_choice={"type": "function", "name": "weather"},
        parallel_tool_calls=False,
        text={"format": {"type": "json_schema", "name": "x", "schema": schema, "strict": True}},
        max_output_tokens=7,
        temperature=0.5,
        top_p=0.25,
        include=["message.output_text.logprobs"],
        top_logprobs=3,
        chat_template_kwargs={"enable_thinking": False},
        store=True,
        truncation="disabled",
        reasoning={"effort": "low"},
        seed=11,
    ).chat_input()
    assert chat.tools == [
        {"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": CITY}}
    ]
    assert chat.tool_choice == {"type": "function", "function": {"name": "weather"}}
    assert chat.parallel_tool_calls is False
    assert chat.response_format["json_schema"]["schema"] == schema
    assert chat.rendering.options() == {"enable_thinking": False, "reasoning_effort": "low"}
    sampling = chat.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.5, 0.25)
    assert (sampling.logprobs, sampling.seed) == (3, 11)


def test_defaults_are_openais():
    chat = asked().chat_input()
    assert (chat.tool_choice, chat.parallel_tool_calls, chat.response_format) == ("auto", True, {"type": "text"})
    assert (chat.sampling.max_tokens, chat.sampling.temperature, chat.sampling.logprobs) == (None, 1.0, None)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"n": 2}, "n"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "weather"}}]}, "tools[0].name"),
        ({"tools": ["weather"]}, "tools[0].type"),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice.type"),
        ({"text": {"format": {"type": "xml"}}}, "text.format"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"text": {"format": {}}}, "text.format"),
    ],
)
def test_what_cannot_be_done_is_refused_by_its_name(fields, param):
    with pytest.raises(InvalidRequest) as refused:
        asked(**fields).chat_input()
    assert refused.value.param == param


@pytest.mark.parametrize(
    "fields", [{"input": 7}, {"input": None}, {"max_output_tokens": 0}, {"top_logprobs": 21}, {"text": "json"}]
)
def test_fields_of_other_types_are_refused(fields):
    with pytest.raises(ValidationError):
        asked(**fields)


def test_the_response_repeats_the_request():
    request = AnswerRequest(prompt_token_ids=[1], max_tokens=1, temperature=0.25)
    echoed = asked(instructions="Be brief.", tools=[WEATHER], metadata={"a": "b"}).echoed(request)
    assert json.dumps(echoed)
    assert echoed["instructions"] == "Be brief."
    assert echoed["metadata"] == {"a": "b"}
    assert echoed["temperature"] == 0.25
    assert echoed["tools"][0]["name"] == "weather"
