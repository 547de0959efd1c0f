"""LangChain's ChatOpenAI, unmodified.

Answers are compared with the second to a prompt, see test_llm.
"""

from typing import Literal

import openai
import pytest
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel

PROMPT = "Name three colours."


class Town(BaseModel):
    """A town."""

    name: Literal["Paris", "Rome"]
    large: bool


@tool
def paint(colour: Literal["red", "blue"]) -> str:
    """Paint the wall."""
    return f"the wall is {colour}"


@pytest.fixture
def chat(device):
    def made(**options):
        settings = {"temperature": 0, "max_tokens": 12, "max_retries": 0, "timeout": 120, **options}
        return ChatOpenAI(base_url=device.url, api_key=device.api_key, model="on-device", **settings)

    return made


def test_invoke_and_stream_say_the_same(chat):
    first, whole = (chat().invoke([SystemMessage("Be brief."), HumanMessage(PROMPT)]) for _ in range(2))
    chunks = list(chat().stream([SystemMessage("Be brief."), HumanMessage(PROMPT)]))
    assert first.content
    assert "".join(chunk.content for chunk in chunks) == whole.content
    assert len(chunks) > 3
    assert whole.usage_metadata["output_tokens"] == 12
    assert whole.response_metadata["finish_reason"] == "length"


def test_streamed_usage_is_counted(chat):
    chunks = list(chat(stream_usage=True).stream(PROMPT))
    counted = [chunk.usage_metadata for chunk in chunks if chunk.usage_metadata]
    assert sum(usage["output_tokens"] for usage in counted) == 12


async def test_the_asynchronous_calls_say_the_same(chat, anyio_backend):
    await chat().ainvoke(PROMPT)
    whole = await chat().ainvoke(PROMPT)
    assert "".join([chunk.content async for chunk in chat().astream(PROMPT)]) == whole.content


def test_a_batch_is_answered_in_turn(chat):
    assert all(answer.content for answer in chat().batch([PROMPT, "Hello.", "Count to three."]))


def test_a_bound_tool_is_called_and_its_result_is_taken(chat):
    forced = chat(max_tokens=60).bind_tools([paint], tool_choice="paint")
    question = HumanMessage("Paint the wall.")
    forced.invoke([question])
    answer = forced.invoke([question])
    [call] = answer.tool_calls
    assert call["name"] == "paint"
    assert call["args"]["colour"] in {"red", "blue"}
    streamed = None
    for chunk in forced.stream([question]):
        streamed = chunk if streamed is None else streamed + chunk
    assert streamed.tool_calls[0]["args"] == call["args"]
    said = chat().bind_tools([paint]).invoke([question, answer, paint.invoke(call)])
    assert isinstance(said, AIMessage)
    assert isinstance(paint.invoke(call), ToolMessage)


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_a_structured_answer_is_an_object_of_the_class(chat, method):
    structured = chat(max_tokens=100).with_structured_output(Town, method=method)
    assert isinstance(structured.invoke("Which town is the capital of France?"), Town)


def test_logprobs_arrive(chat):
    answer = chat().bind(logprobs=True, top_logprobs=2).invoke(PROMPT)
    entries = answer.response_metadata["logprobs"]["content"]
    assert len(entries) == 12
    assert "".join(entry["token"] for entry in entries) == answer.content


def test_the_responses_api_answers(chat):
    assert chat(use_responses_api=True).invoke(PROMPT).text
    assert "".join(chunk.text for chunk in chat(use_responses_api=True).stream(PROMPT))


def test_raw_completions_answer(device):
    model = OpenAI(base_url=device.url, api_key=device.api_key, model="on-device", temperature=0, max_tokens=8)
    assert "Paris" in model.invoke("The capital of France is")
    assert "".join(model.stream("The capital of France is"))


def test_a_prompt_that_is_too_long_is_known_as_such(chat):
    for asked in (PROMPT * 800, PROMPT):
        with pytest.raises(ContextOverflowError, match="maximum context length is 1024 tokens"):
            chat(max_tokens=1020).invoke(asked)


def test_errors_are_the_packages_own(chat):
    with pytest.raises(openai.BadRequestError, match="n must be 1"):
        chat(n=2).invoke(PROMPT)
