import asyncio
import threading

import anyio
import openai
import pytest
from pydantic import BaseModel

from pdd_core.errors import CloudLost
from pdd_llamacpp_adapter.server.answers.answering import Call
from pdd_llamacpp_adapter.server.answers.delivery import stream_answer
from pdd_llamacpp_adapter.server.answers.prepared_answer import PreparedAnswer
from pdd_llamacpp_adapter.server.chat.chat_objects import ChatChunks, ChatShape
from pdd_llamacpp_adapter.server.completions.completion_routes import PlainText
from pdd_llamacpp_adapter.server.prompts.prepare import answer_request
from pdd_llamacpp_adapter.server.wire.failures import ErrorObject
from pdd_llamacpp_adapter.server.wire.sampling_fields import Sampling

pytestmark = pytest.mark.anyio

ASK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


async def test_the_stock_client_streams_and_does_not(service, served):
    async with served(service()) as client:
        whole = await client.chat.completions.create(**ASK)
        assert whole.choices[0].message.content == "Hello you"
        assert whole._request_id.startswith("req_")
        stream = await client.chat.completions.create(**ASK, stream=True)
        assert [c.choices[0].delta.content async for c in stream] == ["", "Hel", "lo", " you", None]
        text = await client.completions.create(model="tiny", prompt=[65])
        assert text.choices[0].text == "Hello you"


async def test_tokens_are_sent_when_they_are_made(service, served):
    async with served(service(["A", 600.0])) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        with anyio.fail_after(60):
            role = await anext(stream)
            first = await anext(stream)
        assert (role.choices[0].delta.content, first.choices[0].delta.content) == ("", "A")
        await stream.close()


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_stops_both_engines(service, served, until, stream):
    made = service(["A", 60.0])
    async with served(made) as client:

        async def ask():
            answer = await client.chat.completions.create(**ASK, stream=stream)
            async for _ in answer:
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            await until(lambda: made.runtime.sessions and made.runtime.sessions[0].tokens)
            tasks.cancel_scope.cancel()
        await until(lambda: made.runtime.sessions[0].left)
        await until(lambda: made.queue.running == 0)
        # the next client is served
        made.runtime.script = ["B"]
        assert (await client.chat.completions.create(**ASK)).choices[0].message.content == "B"


async def test_a_client_that_leaves_the_queue_gives_its_place_back(service, served, until):
    made = service([60.0])
    async with served(made) as client:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(lambda: client.chat.completions.create(**ASK))
            await until(lambda: (made.queue.running, made.queue.waiting) == (1, 2))
            tasks.cancel_scope.cancel()
        await until(lambda: (made.queue.running, made.queue.waiting) == (0, 0))
        assert len(made.runtime.sessions) == 1


async def raw_lines(client, **fields):
    async with client.chat.completions.with_streaming_response.create(**ASK, stream=True, **fields) as response:
        return [line async for line in response.iter_lines()]


async def test_a_silent_stream_is_kept_alive(service, served):
    heard_enough = anyio.Event()
    async with served(service([heard_enough.wait, "A"], keep_alive=0.03)) as client:
        lines = []
        async with client.chat.completions.with_streaming_response.create(**ASK, stream=True) as response:
            async for line in response.iter_lines():
                lines.append(line)
                if lines.count(": keep-alive") == 2:
                    heard_enough.set()
        assert lines[-2] == "data: [DONE]"
    one_comment = anyio.Event()
    async with served(service([one_comment.wait, "A"], keep_alive=0.03)) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)  # the stock client does not mind
        one_comment.set()
        assert [c.choices[0].delta.content async for c in stream] == ["", "A", None]


async def test_a_failure_after_a_keep_alive_is_an_event(service, served):
    begun = anyio.Event()
    async with served(service([begun.wait, CloudLost("gone")], keep_alive=0.03)) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        begun.set()
        with pytest.raises(openai.APIError, match="gone") as caught:
            [chunk async for chunk in stream]
        assert caught.value.code == "cloud_unavailable"


async def test_errors_are_the_stock_clients_typed_exceptions(service, served):
    async with served(service()) as client:
        with pytest.raises(openai.BadRequestError) as bad:
            await client.chat.completions.create(**ASK, n=2)
        assert (bad.value.param, bad.value.code) == ("n", "unsupported_value")
        with pytest.raises(openai.NotFoundError) as missing:
            await client.chat.completions.create(**{**ASK, "model": "other"})
        assert missing.value.code == "model_not_found"
    async with served(service([CloudLost("gone")])) as client:
        with pytest.raises(openai.InternalServerError) as lost:
            await client.chat.completions.create(**ASK)
        assert (lost.value.status_code, lost.value.code) == (503, "cloud_unavailable")


@pytest.mark.parametrize("stream", [False, True])
async def test_a_grammar_that_cannot_be_obeyed_is_refused_before_it_would_wait(service, served, until, stream):
    told = anyio.Event()
    made = service([told.wait, "A"])
    made.runtime.refuses_grammars = True
    async with served(made) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: client.chat.completions.create(**ASK))
        await until(lambda: made.queue.running == 1)
        with anyio.fail_after(60), pytest.raises(openai.BadRequestError) as refused:
            await client.chat.completions.create(**ASK, response_format={"type": "json_object"}, stream=stream)
        assert refused.value.param == "response_format"
        told.set()


@pytest.mark.parametrize("path", ["/chat/completions", "/completions", "/responses"])
async def test_no_prompt_is_made_for_an_answer_that_gets_no_place(service, served, until, path, monkeypatch):
    told = anyio.Event()
    made = service([told.wait, "A"], max_queue=0)
    body = {"input": "Hi"} if path == "/responses" else {"messages": ASK["messages"], "prompt": "Hi"}
    async with served(made) as client, anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: client.chat.completions.create(**ASK))
        await until(lambda: made.queue.running == 1)
        monkeypatch.setattr(made.runtime.vocab, "tokenize", None)
        with pytest.raises(openai.RateLimitError) as refused:
            await client.post(path, cast_to=object, body=body)
        assert int(refused.value.response.headers["retry-after"]) >= 1
        told.set()


async def test_only_a_few_prompts_are_made_at_a_time(service, served, until, monkeypatch):
    made = service(max_queue=50)
    tokenize, at_work, most, go_on = made.runtime.vocab.tokenize, [], [], threading.Event()

    def held_up(*arguments, **named):
        at_work.append(None)
        most.append(len(at_work))
        go_on.wait()
        at_work.pop()
        return tokenize(*arguments, **named)

    monkeypatch.setattr(made.runtime.vocab, "tokenize", held_up)
    async with served(made) as client, anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(lambda: client.chat.completions.create(**ASK))
        try:
            await until(lambda: made.preparing.statistics().tasks_waiting == 16 and len(at_work) == 4)
        finally:
            go_on.set()
    assert max(most) == 4
    assert len(made.runtime.sessions) == 20


async def test_answers_wait_for_their_turn_and_too_many_are_sent_away(service, served, until):
    all_asked = anyio.Event()
    made = service([all_asked.wait, "A"], max_queue=2)
    answers, refusals = [], []
    async with served(made) as client:

        async def ask():
            try:
                answers.append(await client.chat.completions.create(**ASK))
            except openai.RateLimitError as error:
                refusals.append(error)

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(ask)
            await until(lambda: len(refusals) == 2)
            assert (made.queue.running, made.queue.waiting) == (1, 2)
            all_asked.set()
    assert len(answers) == 3
    assert all(error.code == "rate_limit_exceeded" for error in refusals)
    assert all(int(error.response.headers["retry-after"]) >= 1 for error in refusals)


async def test_a_refused_client_that_retries_is_served_in_the_end(service, served):
    made = service([0.02, "A"], max_queue=1)
    made.queue._usual = 0.01  # so that the advice is short
    async with served(made, max_retries=10) as client, anyio.create_task_group() as tasks:
        for _ in range(4):
            tasks.start_soon(lambda: client.chat.completions.create(**ASK))
    assert sum(session.ended for session in made.runtime.sessions) == 4


async def test_an_answer_can_be_read_while_it_is_made_and_deleting_it_stops_it(service, served, until):
    made = service(["A", 60.0])
    async with served(made) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        answer_id = (await anext(stream)).id
        await anext(stream)
        partial = await client.chat.completions.retrieve(answer_id)
        assert (partial.choices[0].message.content, partial.choices[0].finish_reason) == ("A", None)
        assert partial.pdd["status"] == "running"
        assert (await client.chat.completions.delete(answer_id)).deleted
        with pytest.raises(openai.APIError, match="deleted"):
            await anext(stream)
        await until(lambda: made.queue.running == 0)
        with pytest.raises(openai.NotFoundError):
            await client.chat.completions.retrieve(answer_id)


async def test_what_a_client_left_can_still_be_read(service, served, until):
    made = service(["A", 60.0])
    async with served(made) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        answer_id = (await anext(stream)).id
        await anext(stream)
        await stream.close()
        await until(lambda: made.queue.running == 0)
        left = await client.chat.completions.retrieve(answer_id)
        assert (left.choices[0].message.content, left.pdd["status"]) == ("A", "cancelled")


async def test_a_failed_answer_says_why_when_it_is_read_again(service, served):
    made = service(["A", CloudLost("gone")])
    async with served(made) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        answer_id = (await anext(stream)).id
        with pytest.raises(openai.APIError):
            [chunk async for chunk in stream]
        failed = await client.chat.completions.retrieve(answer_id)
        assert (failed.choices[0].message.content, failed.pdd["status"]) == ("A", "failed")
        assert failed.pdd["error"]["code"] == "cloud_unavailable"


async def test_refused_answers_cost_no_other_its_place(service, served, until):
    made = service(stored_answers=2, max_queue=0)
    async with served(made) as client:
        kept = await client.chat.completions.create(**ASK)
        made.runtime.script = [60.0]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: client.chat.completions.create(**ASK))
            await until(lambda: made.queue.running == 1)
            for stream in (False, True, False, True):
                with pytest.raises(openai.RateLimitError):
                    await client.chat.completions.create(**ASK, stream=stream)
            assert (await client.chat.completions.retrieve(kept.id)).id == kept.id
            tasks.cancel_scope.cancel()
    assert len(made.stored) == 1


async def test_an_answer_whose_id_went_out_before_it_failed_can_be_asked_for(service, served):
    begun = anyio.Event()
    async with served(service([begun.wait, CloudLost("gone")], keep_alive=0.03)) as client:
        stream = await client.chat.completions.create(**ASK, stream=True)
        answer_id = (await anext(stream)).id
        begun.set()
        with pytest.raises(openai.APIError, match="gone"):
            [chunk async for chunk in stream]
        assert (await client.chat.completions.retrieve(answer_id)).pdd["status"] == "failed"


async def test_text_that_is_held_back_is_not_lost_with_the_answer(service, served):
    tool = {"type": "function", "function": {"name": "f"}}
    async with served(service(["A", "<tool", CloudLost("gone")])) as client:
        lines = [line for line in await raw_lines(client, tools=[tool]) if line]
    assert '"content":"A"' in lines[-4]
    assert '"content":"<tool"' in lines[-3]
    assert '"error"' in lines[-2]


async def test_the_blocking_client_works_too(service, served):
    async with served(service()) as client:

        def ask():
            with openai.OpenAI(base_url=client.base_url, api_key="x", max_retries=0) as blocking:
                whole = blocking.chat.completions.create(**ASK)
                with blocking.chat.completions.create(**ASK, stream=True) as stream:
                    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
                completion = blocking.completions.create(model="tiny", prompt="x", stream=True)
                return whole.choices[0].message.content, text, "".join(c.choices[0].text for c in completion)

        assert await anyio.to_thread.run_sync(ask) == ("Hello you",) * 3


class Point(BaseModel):
    x: int
    y: int


async def test_the_stock_client_parses_structured_output(service, served):
    made = service(['{"x": 1,', ' "y": 2}'])
    async with served(made) as client:
        parsed = await client.chat.completions.parse(**ASK, response_format=Point)
        assert parsed.choices[0].message.parsed == Point(x=1, y=2)
        assert made.runtime.sessions[0].request.grammar.kind == "json"
        async with client.chat.completions.stream(
            **ASK, response_format=Point, logprobs=True, stream_options={"include_usage": True}
        ) as stream:
            final = await stream.get_final_completion()
        assert final.choices[0].message.parsed == Point(x=1, y=2)
        assert final.usage.completion_tokens == len(final.choices[0].logprobs.content) == 2


@pytest.mark.parametrize(
    "script", [['{"x": 1,', ' "y": 2}'], ['{"name": "Point",', ' "arguments": {"x": 1, "y": 2}}']]
)
async def test_the_stock_client_parses_structured_output_and_calls_of_the_same_request(service, served, script):
    async with served(service(script)) as client:
        parsed = await client.chat.completions.parse(
            **ASK, response_format=Point, tools=[openai.pydantic_function_tool(Point)]
        )
    (choice,) = parsed.choices
    if choice.finish_reason == "tool_calls":
        (call,) = choice.message.tool_calls
        assert (choice.message.parsed, call.function.parsed_arguments) == (None, Point(x=1, y=2))
    else:
        assert (choice.message.parsed, choice.message.tool_calls) == (Point(x=1, y=2), None)


@pytest.fixture
def stream_of():
    """Make the streamed response of a service, without HTTP around it."""

    def make(service):
        call = Call(service=service, runtime=service.runtime, route="/", request_id="r", answer_id="chatcmpl-1")
        prepared = PreparedAnswer(answer_request([1], Sampling(), service.runtime), PlainText())
        return stream_answer(call, prepared, ChatChunks(call, ChatShape()))

    return make


async def test_a_client_that_takes_nothing_is_given_up(service, stream_of):
    made = service(["A", 600.0], send_timeout=0.05)

    async def send(message):
        if message["type"] == "http.response.body":
            await anyio.sleep(600)

    with anyio.fail_after(60):
        await stream_of(made)({"type": "http"}, anyio.sleep_forever, send)
    assert made.runtime.sessions[0].left
    assert made.queue.running == 0


@pytest.mark.parametrize("slow", ["http.response.start", "http.response.body"])
async def test_a_client_that_takes_its_time_misses_nothing_and_holds_no_engine(service, stream_of, slow):
    made = service(["A", "B", "C"])
    running, body = [], b""

    async def send(message):
        nonlocal body
        if message["type"] == slow:
            await anyio.sleep(0.02)
            running.append(made.queue.running)
        body += message.get("body", b"")

    with anyio.fail_after(60):
        await stream_of(made)({"type": "http"}, anyio.sleep_forever, send)
    assert [body.count(f'"content":"{word}"'.encode()) for word in "ABC"] == [1, 1, 1]
    assert body.endswith(b"data: [DONE]\n\n")
    assert running[0] == 0


async def test_many_answers_leave_nothing_behind(service, served, until):
    made = service(stored_answers=5)
    async with served(made) as client:
        await client.chat.completions.create(**ASK)
        tasks_before, threads_before = len(asyncio.all_tasks()), threading.active_count()
        for number in range(30):
            if number % 2:
                await client.chat.completions.create(**ASK)
            else:
                [chunk async for chunk in await client.chat.completions.create(**ASK, stream=True)]
        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(lambda: client.chat.completions.create(**ASK))
        await until(lambda: len(asyncio.all_tasks()) <= tasks_before)
        assert threading.active_count() <= threads_before + 8  # anyio's workers, for eight prompts at once
    assert not made._answers
    assert len(made.stored) == 5
    assert (made.queue.running, made.queue.waiting) == (0, 0)
    assert all(session.ended and session.left for session in made.runtime.sessions)


async def test_an_answer_stopped_while_it_waits_is_an_http_error(service, served, until):
    made = service([60.0])
    async with served(made) as client:
        failed = []

        async def ask():
            try:
                await client.chat.completions.create(**ASK, stream=True)
            except openai.APIStatusError as error:
                failed.append(error.status_code)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
            await until(lambda: (made.queue.running, made.queue.waiting) == (1, 1))
            for answer in list(made._answers):
                answer.stop(ErrorObject(404, "stopped", "invalid_request_error"))
    assert failed == [404, 404]
