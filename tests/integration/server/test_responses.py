"""The responses API as the stock openai package asks for it, from a device alone."""

import json
from typing import Literal

import openai
import pytest
from device_server import settled
from pydantic import BaseModel

ASK = {"model": "smollm2", "input": "Name three colours.", "temperature": 0, "max_output_tokens": 12}
TOOL = {
    "type": "function",
    "name": "paint",
    "parameters": {
        "type": "object",
        "properties": {"colour": {"enum": ["red", "blue"]}},
        "required": ["colour"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Paint(BaseModel):
    colour: Literal["red", "blue"]
    coats: Literal[1, 2]


async def test_created_and_streamed_say_the_same(device, local, anyio_backend):
    whole = settled(local.responses.create, **ASK)
    with local.responses.create(**ASK, stream=True) as stream:
        events = list(stream)
    async with device.async_client() as client:
        again = await client.responses.create(**ASK)
    assert whole.output_text.strip()
    assert again.output_text == whole.output_text
    assert (whole.status, whole.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert whole.usage.output_tokens == 12
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == whole.output_text
    assert [event.type for event in events[:2]] == ["response.created", "response.in_progress"]
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == said
    assert [event.sequence_number for event in events] == list(range(len(events)))


def test_a_response_to_a_conversation_with_instructions_completes(local):
    conversation = [
        {"role": "user", "content": "What is my name?"},
        {"role": "assistant", "content": "I do not know."},
        {"role": "user", "content": [{"type": "input_text", "text": "Reply with the single word: yes"}]},
    ]
    answer = local.responses.create(
        model="smollm2", input=conversation, instructions="Be brief.", temperature=0, max_output_tokens=200
    )
    assert answer.status == "completed"
    assert answer.output_text


def test_the_stream_helper_gives_the_final_response(local):
    asked = {**ASK, "input": "Reply with the single word: yes", "max_output_tokens": 200}
    whole = settled(local.responses.create, **asked)
    with local.responses.stream(**asked) as stream:
        stream.until_done()
        final = stream.get_final_response()
    assert final.output_text == whole.output_text


def test_parse_gives_an_object_of_the_class(local):
    answer = local.responses.parse(**{**ASK, "max_output_tokens": 100}, text_format=Paint)
    assert isinstance(answer.output_parsed, Paint)


def test_a_forced_function_is_called(local):
    asked = {**ASK, "max_output_tokens": 100, "tools": [TOOL]}
    choice = {"type": "function", "name": "paint"}
    answer = settled(local.responses.create, **asked, tool_choice=choice)
    [call] = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "paint"
    assert json.loads(call.arguments)["colour"] in {"red", "blue"}
    with local.responses.create(**asked, tool_choice=choice, stream=True) as stream:
        events = list(stream)
    said = "".join(event.delta for event in events if event.type == "response.function_call_arguments.delta")
    assert said == call.arguments
    follow_up = [
        {"role": "user", "content": "Paint it."},
        call.model_dump(include={"type", "call_id", "name", "arguments"}),
        {"type": "function_call_output", "call_id": call.call_id, "output": "done"},
    ]
    assert local.responses.create(**{**ASK, "input": follow_up}).output_text


def test_what_needs_a_memory_is_refused(local):
    with pytest.raises(openai.BadRequestError) as caught:
        local.responses.create(**ASK, previous_response_id="resp_1")
    assert caught.value.param == "previous_response_id"
    made = local.responses.create(**ASK)
    with pytest.raises(openai.NotFoundError):
        local.responses.retrieve(made.id)
