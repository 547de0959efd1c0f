"""Tools and structured answers, as the stock openai package asks for them."""

import json
from typing import Literal

import openai
import pytest
from device_server import settled
from pydantic import BaseModel

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 20},
                "unit": {"type": "string", "enum": ["celsius", "fahrenheit"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}
ASK = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the weather in Paris?"}],
    "temperature": 0,
    "max_tokens": 120,
}
NAMED = {"type": "function", "function": {"name": "get_weather"}}


class Town(BaseModel):
    name: Literal["Paris", "Rome"]
    large: bool
    rivers: Literal[0, 1, 2]


def test_a_tool_chosen_by_name_is_called(local):
    answer = local.chat.completions.create(**ASK, tools=[CLOCK, WEATHER], tool_choice=NAMED)
    choice = answer.choices[0]
    [call] = choice.message.tool_calls
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content is None
    assert (call.type, call.function.name) == ("function", "get_weather")
    arguments = json.loads(call.function.arguments)
    assert set(arguments) == {"city", "unit"}
    assert arguments["unit"] in {"celsius", "fahrenheit"}


def test_a_required_choice_calls_one_of_them(local):
    answer = local.chat.completions.create(**ASK, tools=[CLOCK, WEATHER], tool_choice="required")
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.tool_calls
    for call in answer.choices[0].message.tool_calls:
        assert call.function.name in {"get_time", "get_weather"}
        json.loads(call.function.arguments)


def test_a_streamed_call_is_the_whole_one_in_pieces(local):
    asked = {**ASK, "tools": [WEATHER], "tool_choice": NAMED}
    [whole] = settled(local.chat.completions.create, **asked).choices[0].message.tool_calls
    with local.chat.completions.create(**asked, stream=True) as stream:
        chunks = [choice for chunk in stream for choice in chunk.choices]
    pieces = [call for choice in chunks for call in choice.delta.tool_calls or []]
    assert len(pieces) > 2
    assert (pieces[0].function.name, pieces[0].index) == ("get_weather", 0)
    assert pieces[0].id
    assert [piece.id for piece in pieces[1:]] == [None] * (len(pieces) - 1)
    assert "".join(piece.function.arguments for piece in pieces) == whole.function.arguments
    assert chunks[-1].finish_reason == "tool_calls"


def test_the_packages_stream_helper_assembles_the_call(local):
    with local.chat.completions.stream(**ASK, tools=[WEATHER], tool_choice=NAMED) as stream:
        stream.until_done()
        [call] = stream.get_final_completion().choices[0].message.tool_calls
    assert json.loads(call.function.arguments)["unit"] in {"celsius", "fahrenheit"}


def test_a_free_choice_answers_in_text_or_calls(local):
    short = {**ASK, "max_tokens": 40}
    for choice in ("auto", "none"):
        answer = local.chat.completions.create(**short, tools=[WEATHER], tool_choice=choice).choices[0]
        assert answer.finish_reason in {"stop", "length", "tool_calls"}
        assert answer.message.content or answer.message.tool_calls
        assert choice == "auto" or not answer.message.tool_calls


def test_a_conversation_with_a_call_and_its_result_goes_on(local):
    [call] = local.chat.completions.create(**ASK, tools=[WEATHER], tool_choice=NAMED).choices[0].message.tool_calls
    messages = [
        *ASK["messages"],
        {"role": "assistant", "content": None, "tool_calls": [call.model_dump()]},
        {"role": "tool", "tool_call_id": call.id, "content": '{"celsius": 21}'},
    ]
    answer = local.chat.completions.create(**{**ASK, "messages": messages, "max_tokens": 24}, tools=[WEATHER])
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "no"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [{"type": "web_search"}]}, "tools[0].type"),
    ],
)
def test_a_wrong_tool_is_refused(local, change, param):
    with pytest.raises(openai.BadRequestError) as caught:
        local.chat.completions.create(**ASK, **change)
    assert caught.value.param == param


def test_parse_gives_an_object_of_the_class(local):
    answer = local.chat.completions.parse(**ASK, response_format=Town)
    assert isinstance(answer.choices[0].message.parsed, Town)
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize(
    "question", ["Call the tool get_time for UTC.", "Name a town.", "What is the weather in Paris?"]
)
def test_parse_with_tools_gives_an_object_or_a_valid_call(local, question):
    messages = [{"role": "user", "content": question}]
    tools = [{**tool, "function": {**tool["function"], "strict": True}} for tool in (CLOCK, WEATHER)]
    answer = local.chat.completions.parse(**{**ASK, "messages": messages}, response_format=Town, tools=tools)
    message = answer.choices[0].message
    if answer.choices[0].finish_reason == "tool_calls":
        assert message.parsed is None
        [call] = message.tool_calls
        assert set(json.loads(call.function.arguments)) in ({"zone"}, {"city", "unit"})
    else:
        assert isinstance(message.parsed, Town)


async def test_parse_asynchronously(device, anyio_backend):
    async with device.async_client() as client:
        answer = await client.chat.completions.parse(**ASK, response_format=Town)
    assert isinstance(answer.choices[0].message.parsed, Town)


def test_a_streamed_structured_answer_parses(local):
    with local.chat.completions.stream(**ASK, response_format=Town) as stream:
        stream.until_done()
        assert isinstance(stream.get_final_completion().choices[0].message.parsed, Town)


def test_parse_of_an_answer_that_was_cut_short_says_so(local):
    with pytest.raises(openai.LengthFinishReasonError):
        local.chat.completions.parse(**{**ASK, "max_tokens": 3}, response_format=Town)


def test_a_json_object_is_one(local):
    # at most four tokens of a value: a small model might never close it
    answer = local.chat.completions.create(
        **{**ASK, "messages": [{"role": "user", "content": 'Reply with {"city": "Paris"}'}], "max_tokens": 200},
        response_format={"type": "json_object"},
    )
    said = answer.choices[0].message.content
    assert said.startswith("{")
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(said), dict)


def test_a_schema_that_cannot_be_obeyed_is_refused(local):
    schema = {"type": "json_schema", "json_schema": {"name": "x", "schema": {"type": "nothing of the kind"}}}
    with pytest.raises(openai.BadRequestError) as caught:
        local.chat.completions.create(**ASK, response_format=schema)
    assert caught.value.type == "invalid_request_error"
