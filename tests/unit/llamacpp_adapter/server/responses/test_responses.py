import json

import openai
import pytest
from openai.types.responses import InputTokenCountResponse, Response, ResponseStreamEvent
from pydantic import BaseModel, TypeAdapter

from pdd_core.errors import CloudLost, ContextOverflow
from pdd_llamacpp_adapter.request import GrammarKind

EVENT = TypeAdapter(ResponseStreamEvent)
CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}, "strict": False}
CALL = '<tool_call>\n{"name": "clock", "arguments": {"zone": "UTC"}}\n</tool_call>'
THOUGHT = ("<think>", "Hm", "m.", "</think>", "\n\n", "Hi", "!")


def post(client, **fields):
    return client.post("/v1/responses", json={"model": "tiny", "input": "Hi", **fields})


def whole(client, **fields):
    response = post(client, **fields)
    assert response.status_code == 200, response.text
    Response.model_validate(response.json(), strict=True)
    return response.json()


def streamed(client, **fields):
    response = post(client, stream=True, **fields)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = []
    for block in response.text.strip().split("\n\n"):
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        EVENT.validate_python(event)
        events.append(event)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    return events


def stable(output):
    """The output without its random ids."""
    return [{key: value for key, value in item.items() if key not in ("id", "call_id")} for item in output]


def told(events):
    return [event["type"].removeprefix("response.") for event in events]


def test_a_whole_response_is_openais_object(client, service):
    response = whole(client(service()), instructions="Be brief.", metadata={"a": "b"})
    assert response["id"].startswith("resp_")
    assert (response["object"], response["status"], response["error"]) == ("response", "completed", None)
    assert (response["model"], response["instructions"], response["metadata"]) == ("tiny", "Be brief.", {"a": "b"})
    assert (response["store"], response["previous_response_id"]) == (False, None)
    (message,) = response["output"]
    assert message["id"].startswith("msg_")
    assert (message["type"], message["role"], message["status"]) == ("message", "assistant", "completed")
    assert message["content"] == [{"type": "output_text", "text": "Hello you", "annotations": [], "logprobs": []}]
    usage = response["usage"]
    assert (usage["output_tokens"], usage["input_tokens_details"]["cached_tokens"]) == (3, 3)
    assert usage["output_tokens_details"] == {"reasoning_tokens": 0}
    assert usage["total_tokens"] == usage["input_tokens"] + 3
    assert response["pdd"]["tokens"]["cloud"] == 2


def test_a_stream_comes_in_openais_order(client, service):
    events = streamed(client(service()))
    assert told(events) == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert events[0]["response"]["status"] == "in_progress"
    assert events[0]["response"]["output"] == []
    assert events[2]["item"]["content"] == []
    assert "".join(event["delta"] for event in events[4:7]) == events[7]["text"] == "Hello you"
    assert events[-1]["response"]["output"] == [events[-2]["item"]]
    assert events[-1]["response"]["usage"]["output_tokens"] == 3
    assert {event["item_id"] for event in events[3:9]} == {events[2]["item"]["id"]}


SCRIPTS = {
    "words": ("Hel", "lo"),
    "thoughts": THOUGHT,
    "a call": (CALL,),
    "all": ("<think>Hm</think>", "Let me see. ", CALL[:20], CALL[20:], "\n", CALL),
    "nothing": (),
    "only thoughts": ("<think>", "Hm"),
}


@pytest.mark.parametrize("script", SCRIPTS.values(), ids=SCRIPTS)
@pytest.mark.parametrize("reason", ["stop", "length"])
def test_whole_and_streamed_responses_are_the_same(client, service, script, reason):
    http = client(service(script, session={"finish_reason": reason}))
    response = whole(http, tools=[CLOCK])
    events = streamed(http, tools=[CLOCK])
    last = events[-1]["response"]
    assert stable(last["output"]) == stable(response["output"])
    assert (last["usage"], last["status"]) == (response["usage"], response["status"])
    assert [e["item"] for e in events if e["type"] == "response.output_item.done"] == last["output"]
    indexes = [e["output_index"] for e in events if e["type"] == "response.output_item.added"]
    assert indexes == list(range(len(last["output"])))


def test_an_answer_that_was_too_long_is_incomplete(client, service):
    http = client(service(session={"finish_reason": "length"}))
    response = whole(http)
    assert response["status"] == "incomplete"
    assert response["incomplete_details"] == {"reason": "max_output_tokens"}
    assert response["output"][-1]["status"] == "incomplete"
    assert told(streamed(http))[-1] == "incomplete"


def test_thoughts_are_an_item_of_their_own(client, service):
    http = client(service(THOUGHT))
    response = whole(http)
    thoughts, message = response["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Hmm."}]
    assert message["content"][0]["text"] == "Hi!"
    assert response["usage"]["output_tokens_details"] == {"reasoning_tokens": 4}
    assert [kind for kind in told(streamed(http)) if "reasoning" in kind] == [
        "reasoning_text.delta",
        "reasoning_text.delta",
        "reasoning_text.done",
    ]


def test_a_call_is_an_item_with_its_arguments(client, service):
    http = client(service((CALL,)))
    (item,) = whole(http, tools=[CLOCK])["output"]
    assert (item["type"], item["name"], item["status"]) == ("function_call", "clock", "completed")
    assert json.loads(item["arguments"]) == {"zone": "UTC"}
    events = streamed(http, tools=[CLOCK])
    assert told(events)[2:-1] == [
        "output_item.added",
        "function_call_arguments.delta",
        "function_call_arguments.done",
        "output_item.done",
    ]
    assert events[2]["item"]["arguments"] == ""
    assert events[4]["arguments"] == events[3]["delta"]


def test_a_forced_call_streams_its_arguments(client, service):
    made = service(('[{"name": "clock",', ' "arguments": {"zo', 'ne": "UTC"}}', "]"))
    events = streamed(client(made), tools=[CLOCK], tool_choice={"type": "function", "name": "clock"})
    deltas = [event["delta"] for event in events if event["type"] == "response.function_call_arguments.delta"]
    assert deltas == ['{"zo', 'ne": "UTC"}']
    assert made.runtime.sessions[0].request.grammar.kind is GrammarKind.JSON


def test_logprobs_come_with_the_text_if_they_are_asked_for(client, service):
    http = client(service())
    asked = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    (item,) = whole(http, **asked)["output"]
    logprobs = item["content"][0]["logprobs"]
    assert len(logprobs) == 3
    assert [len(entry["top_logprobs"]) for entry in logprobs] == [2, 2, 2]
    events = streamed(http, **asked)
    deltas = [e["logprobs"] for e in events if e["type"] == "response.output_text.delta"]
    assert [entry for delta in deltas for entry in delta] == logprobs
    assert events[-1]["response"]["output"][0]["content"][0]["logprobs"] == logprobs


@pytest.mark.parametrize(("arguments", "status"), [('{"zo', "incomplete"), ("{}", "completed")])
def test_a_call_that_a_stop_string_cuts_is_incomplete(client, service, arguments, status):
    http = client(service((f'[{{"name": "clock", "arguments": {arguments}',)))
    (item,) = whole(http, tools=[CLOCK], tool_choice="required")["output"]
    assert (item["arguments"], item["status"]) == (arguments, status)


WORDS = {
    "an end": (("Hel", "lo", ""), ["H", "l"]),
    "thoughts": (("<think>", "a", "</think>", "\n\n", "in", " lo", ""), ["i", " "]),
    "thoughts and words in one token": (("<think>a</think>So", " lo"), ["<", " "]),
    "only thoughts": (("<think>", "a"), []),
    "a call": (("Now: ", CALL[:20], CALL[20:], "\n", "so", "!"), ["N", "\n", "s", "!"]),
    "no marker after all": (("a ", "<tool", "box>", "!"), ["a", "<", "b", "!"]),
    "a control token within": (("a", "", "b"), ["a", "b"]),
}


@pytest.mark.parametrize(("script", "names"), WORDS.values(), ids=WORDS)
def test_logprobs_are_those_of_the_words_alone_whole_and_streamed(client, service, script, names):
    http = client(service(script))
    asked = {"include": ["message.output_text.logprobs"], "tools": [CLOCK]}
    response, events = whole(http, **asked), streamed(http, **asked)
    last = events[-1]["response"]
    assert stable(response["output"]) == stable(last["output"])
    messages = [item for item in last["output"] if item["type"] == "message"]
    logprobs = [entry for item in messages for entry in item["content"][0]["logprobs"]]
    assert [entry["token"] for entry in logprobs] == names
    deltas = [event["logprobs"] for event in events if event["type"] == "response.output_text.delta"]
    assert [entry for delta in deltas for entry in delta] == logprobs


def test_logprobs_of_withheld_text_come_with_it(client, service):
    """A stop string's beginning waits; the words come without a token in the end."""
    http = client(service(("A", "B"), session={"withheld": "CD"}))
    (item,) = whole(http, include=["message.output_text.logprobs"])["output"]
    assert item["content"][0]["text"] == "ABCD"
    assert [entry["token"] for entry in item["content"][0]["logprobs"]] == ["A", "B"]


def test_words_behind_a_call_are_an_item_of_their_own(client, service):
    http = client(service((CALL, "so")))
    for output in (whole(http, tools=[CLOCK])["output"], streamed(http, tools=[CLOCK])[-1]["response"]["output"]):
        assert [item["type"] for item in output] == ["function_call", "message"]


@pytest.mark.parametrize("strict", [True, False])
def test_a_tool_is_repeated_as_strict_as_it_was_sent(client, service, strict):
    made = service()
    assert whole(client(made), tools=[{**CLOCK, "strict": strict}])["tools"][0]["strict"] is strict
    assert b"strict" not in bytes(made.runtime.sessions[0].request.prompt_token_ids)


def test_a_failure_in_mid_stream_is_a_failed_response(client, service):
    events = streamed(client(service(("Hel", "lo", CloudLost("the cloud is gone")))))
    assert told(events)[-1] == "failed"
    response = events[-1]["response"]
    assert (response["status"], response["error"]["code"]) == ("failed", "server_error")
    assert "the cloud is gone" in response["error"]["message"]
    assert response["output"][0]["content"][0]["text"] == "Hello"


def test_a_failure_before_the_first_token_is_an_http_error(client, service):
    http = client(service(session={"refuses": ContextOverflow("too long")}))
    for stream in (False, True):
        response = post(http, stream=stream)
        assert response.status_code == 400
        assert response.json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"input": []}, "input"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "other"}}, "tool_choice"),
        ({"temperature": 3}, "temperature"),
        ({"tools": [{**CLOCK, "strict": 1}]}, "tools[0].strict"),
    ],
)
def test_refusals_are_openais_errors(client, service, fields, param):
    response = post(client(service()), **fields)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/resp_1"), ("DELETE", "/resp_1"), ("POST", "/resp_1/cancel"), ("GET", "/resp_1/input_items")],
)
def test_no_response_can_be_read_again(client, service, method, path):
    response = client(service()).request(method, f"/v1/responses{path}")
    assert response.status_code == 404
    assert "not stored" in response.json()["error"]["message"]


def count(client, **fields):
    return client.post("/v1/responses/input_tokens", json={"input": "Hi", **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"input": [{"role": "user", "content": "Ping"}], "instructions": "Be brief."},
        {"tools": [CLOCK]},
        {"tools": [CLOCK], "tool_choice": "none"},
        {"text": {"format": {"type": "json_object"}}},
    ],
)
def test_the_tokens_that_are_counted_are_those_of_the_prompt(client, service, fields):
    made = service()
    http = client(made)
    counted = InputTokenCountResponse.model_validate(count(http, **fields).json(), strict=True)
    assert made.runtime.sessions == []
    assert counted.input_tokens == whole(http, **fields)["usage"]["input_tokens"]


def test_a_prompt_is_counted_that_leaves_no_room_for_an_answer(client, service):
    http = client(service())
    assert count(http, input="x" * 5000).json()["input_tokens"] > 5000
    assert post(http, input="x" * 5000).json()["error"]["code"] == "context_length_exceeded"


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"input": None}, 400, "input"),
        ({"input": []}, 400, "input"),
        ({"previous_response_id": "resp_1"}, 400, "previous_response_id"),
        ({"model": "other"}, 404, "model"),
    ],
)
def test_what_cannot_be_answered_is_not_counted(client, service, fields, status, param):
    response = count(client(service()), **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (status, param)


def test_the_conversation_reaches_the_model(client, service):
    made = service()
    whole(client(made), input=[{"role": "user", "content": "Ping"}], instructions="Be brief.")
    prompt = bytes(made.runtime.sessions[0].request.prompt_token_ids).decode()
    assert prompt == "<system>Be brief.\n<user>Ping\n<assistant>"


@pytest.mark.anyio
async def test_openais_client_reads_a_stream(service, served):
    async with served(service(SCRIPTS["all"])) as client:
        kinds = []
        async for event in await client.responses.create(model="tiny", input="Hi", tools=[CLOCK], stream=True):
            kinds.append(event.type)
            response = getattr(event, "response", None)
    assert kinds[-1] == "response.completed"
    assert response.output_text == "Let me see. "
    assert [item.type for item in response.output] == ["reasoning", "message", "function_call", "function_call"]


@pytest.mark.anyio
async def test_openais_client_gathers_a_stream(service, served):
    async with (
        served(service(SCRIPTS["all"])) as client,
        client.responses.stream(model="tiny", input="Hi", tools=[CLOCK]) as stream,
    ):
        texts = [event.snapshot async for event in stream if event.type == "response.output_text.delta"]
        final = await stream.get_final_response()
    assert texts[-1] == "Let me see. "
    assert [item.type for item in final.output] == ["reasoning", "message", "function_call", "function_call"]
    assert final.usage.output_tokens_details.reasoning_tokens == 1


class Point(BaseModel):
    x: int


@pytest.mark.anyio
async def test_openais_client_parses_structured_output(service, served):
    made = service(('{"x"', ": 3}"))
    async with served(made) as client:
        parsed = await client.responses.parse(model="tiny", input="Hi", text_format=Point)
        async with client.responses.stream(model="tiny", input="Hi", text_format=Point) as stream:
            final = await stream.get_final_response()
    assert parsed.output_parsed == final.output_parsed == Point(x=3)
    assert [session.request.grammar.kind for session in made.runtime.sessions] == [GrammarKind.JSON] * 2


@pytest.mark.anyio
async def test_openais_client_carries_a_conversation_with_a_tool(service, served):
    made = service((CALL,))
    async with served(made) as client:
        first = await client.responses.create(model="tiny", input="What time is it?", tools=[CLOCK], store=True)
        (call,) = first.output
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "noon"}
        items = [{"role": "user", "content": "What time is it?"}, *first.output, result]
        await client.responses.create(model="tiny", input=items, tools=[CLOCK])
    prompt = bytes(made.runtime.sessions[1].request.prompt_token_ids).decode()
    assert prompt.endswith(f"<assistant>{CALL}\n<user><tool_response>\nnoon\n</tool_response>\n<assistant>")


@pytest.mark.anyio
async def test_openais_client_raises_a_refusal(service, served):
    async with served(service()) as client:
        with pytest.raises(openai.BadRequestError, match="nothing is stored") as refused:
            await client.responses.create(model="tiny", input="Hi", previous_response_id="resp_1")
    assert refused.value.param == "previous_response_id"
