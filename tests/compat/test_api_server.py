"""vLLM's API server with the plugin attached as vLLM attaches it; only model and workers are missing."""

import asyncio
import json
import re
from contextlib import asynccontextmanager
from importlib.metadata import version

import numpy as np
import pytest
from engine_by_hand import api_server
from vllm_by_hand import scheduler_by_hand

from pdd_vllm_plugin.deployment import WORKER_CLS

pytestmark = pytest.mark.anyio
ID = "h" * 32
TOKEN = ord("a")
PROMPT = [1, 2, 3, 4, 5]


@pytest.fixture
def serve(model_dir, monkeypatch):
    @asynccontextmanager
    async def serve(**options):
        scheduler = scheduler_by_hand(model_dir, max_model_len=512, **options)
        async with api_server(scheduler, model_dir, monkeypatch, token=TOKEN) as (client, core):
            yield client, core

    return serve


@pytest.fixture
async def server(serve):
    async with serve() as parts:
        yield parts


def body(*, xargs=None, **more):
    limit = "max_completion_tokens" if "messages" in more else "max_tokens"
    given = {"model": "m", limit: 20, "ignore_eos": True, **more}
    return {**given, "vllm_xargs": xargs} if xargs else given


def opt_in(budget=4, handoff=ID, **more):
    return {"pdd_handoff": handoff, "pdd_decode_budget": budget, **more}


def events(answer):
    assert answer.status_code == 200, answer.text
    data = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    assert data[-1] == "[DONE]"
    return [json.loads(line) for line in data[:-1]]


async def settled(client, handoff=ID):
    """Return the state once its refinement is settled."""
    while True:
        state = (await client.get(f"/v1/pdd/handoffs/{handoff}")).json()
        if state["refinement"].get("status") != "pending":
            return state
        await asyncio.sleep(0)


async def test_the_plugin_is_active_behind_the_api_key(server):
    client, _ = server
    info = (await client.get("/v1/pdd/info")).json()
    assert info["engine"] == f"vllm {version('vllm')}"
    assert info["tokenizer"]["size"] == 257
    assert {"decode_budget", "handoff_state"} <= set(info["features"])
    for method, path in (("get", "/v1/pdd/info"), ("get", f"/v1/pdd/handoffs/{ID}")):
        assert (await getattr(client, method)(path, headers={"authorization": "none"})).status_code == 401


async def test_a_completion_is_handed_off_and_its_state_can_be_read(server):
    client, core = server
    answer = (await client.post("/v1/completions", json=body(prompt=PROMPT, xargs=opt_in()))).json()
    [choice] = answer["choices"]
    assert (choice["text"], choice["finish_reason"], choice["stop_reason"]) == ("aaaa", "length", "pdd_handoff")
    assert not answer.get("kv_transfer_params")
    state = (await client.get(f"/v1/pdd/handoffs/{ID}")).json()
    assert state["status"] == "handed_off"
    assert (state["prompt_token_ids"], state["output_token_ids"]) == (PROMPT, [TOKEN] * 4)
    assert (state["decode_budget"]["tokens"], state["decode_budget"]["set_by"]) == (4, "client")
    assert not core.scheduler.requests


async def test_a_streamed_completion(server):
    client, _ = server
    request = body(prompt=PROMPT, stream=True, return_token_ids=True, xargs=opt_in())
    sent = events(await client.post("/v1/completions", json=request))
    assert [token for event in sent for token in event["choices"][0]["token_ids"]] == [TOKEN] * 4
    assert sent[0]["choices"][0]["prompt_token_ids"] == PROMPT
    assert sent[-1]["choices"][0]["stop_reason"] == "pdd_handoff"
    assert (await client.get(f"/v1/pdd/handoffs/{ID}")).json()["status"] == "handed_off"


async def test_a_chat_is_retrieved_and_deleted_by_its_own_id(server):
    client, _ = server
    request = body(messages=[{"role": "user", "content": "hi"}], stream=True, xargs=opt_in())
    sent = events(await client.post("/v1/chat/completions", json=request))
    assert sent[-1]["choices"][0]["stop_reason"] == "pdd_handoff"
    path = f"/v1/chat/completions/{sent[0]['id']}"
    kept = (await client.get(path)).json()
    assert kept["choices"][0]["message"]["content"] == "aaaa"
    assert (await client.delete(path)).json()["deleted"]
    assert (await client.get(path)).status_code == 404


async def test_a_response_is_handed_off(server):
    client, _ = server
    request = {"model": "m", "input": "hi", "max_output_tokens": 20, "vllm_xargs": opt_in()}
    answer = await client.post("/v1/responses", json=request)
    assert answer.status_code == 200, answer.text
    state = (await client.get(f"/v1/pdd/handoffs/{ID}")).json()
    assert (state["status"], len(state["output_token_ids"])) == ("handed_off", 4)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_request_that_has_not_opted_in_is_answered_byte_for_byte_as_without_the_plugin(
    serve, monkeypatch, stream
):
    def varying(text):
        return re.sub(r'"(created|created_at|system_fingerprint)": ?("[^"]*"|[0-9]+)', "", text)

    answers = []
    for plugins in ("pdd", "none"):
        monkeypatch.setenv("VLLM_PLUGINS", plugins)
        async with serve() as (client, _):
            has_plugin = (await client.get("/v1/pdd/info")).status_code == 200
            assert has_plugin == (plugins == "pdd")
            of_plugins = []
            for path, more in (
                ("completions", {"prompt": PROMPT}),
                ("chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
            ):
                answer = await client.post(
                    f"/v1/{path}", json=body(stream=stream, **more), headers={"x-request-id": "r"}
                )
                assert answer.status_code == 200
                of_plugins.append((varying(answer.text), sorted(set(answer.headers) - {"content-length"})))
            answers.append(of_plugins)
    assert answers[0] == answers[1]
    assert "aaaaaaaa" in answers[0][0][0] or stream


async def test_a_delete_stops_the_engine_and_is_confirmed(server):
    client, core = server
    core.pause_at = 3
    running = asyncio.create_task(client.post("/v1/completions", json=body(prompt=PROMPT, xargs=opt_in(18))))
    await core.paused.wait()
    state = (await client.get(f"/v1/pdd/handoffs/{ID}")).json()
    assert state["status"] == "running"
    cancelled = await client.delete(f"/v1/pdd/handoffs/{ID}")
    assert (cancelled.status_code, cancelled.json()["confirmed"]) == (200, True)
    assert not core.scheduler.requests
    assert core.scheduler._pdd_budgeted == {}
    core.go_on()
    answer = (await running).json()
    assert answer["choices"][0]["finish_reason"] == "abort"
    assert core.steps == 3


async def test_a_client_that_leaves_stops_the_engine(server):
    client, core = server
    core.pause_at = 2
    running = asyncio.create_task(
        client.post("/v1/completions", json=body(prompt=PROMPT, stream=True, xargs=opt_in(18)))
    )
    await core.paused.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    state = await settled(client)
    assert (state["status"], core.scheduler.requests) == ("aborted", {})


@pytest.mark.parametrize("padding", [0, 9 * 1024 * 1024], ids=["by the middleware", "by the recorder"])
@pytest.mark.parametrize(
    ("xargs", "param"),
    [
        ({"pdd_handoff": "short"}, "vllm_xargs.pdd_handoff"),
        ({"pdd_handoff": ID, "pdd_decode_budget": 0}, "vllm_xargs.pdd_decode_budget"),
    ],
)
async def test_a_wrong_opt_in_is_a_400_that_names_the_field(server, xargs, param, padding):
    client, core = server
    content = json.dumps(body(prompt=PROMPT, xargs=xargs)) + " " * padding
    headers = {"content-type": "application/json"}
    answer = await client.post("/v1/completions", content=content, headers=headers)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param
    assert core.steps == 0


async def test_an_id_in_use_is_refused(server):
    client, core = server
    core.pause_at = 1
    first = asyncio.create_task(client.post("/v1/completions", json=body(prompt=PROMPT, xargs=opt_in())))
    await core.paused.wait()
    second = await client.post("/v1/completions", json=body(prompt=PROMPT, xargs=opt_in()))
    assert second.status_code == 400
    core.go_on()
    assert (await first).json()["choices"][0]["stop_reason"] == "pdd_handoff"


class Worker:
    """One rank that scored a prompt of 400 tokens."""

    def __init__(self, most):
        self.scores = np.zeros(400, dtype=np.float32)
        self.scores[most] = 1

    def pdd_take_scores(self, handoff_ids):
        return [{"layers": [1], "window": 2, "values": self.scores.tobytes()} for _ in handoff_ids]


async def test_scores_of_the_workers_become_a_refined_prompt(serve):
    async with serve(worker_cls=WORKER_CLS) as (client, core):
        line = slice(120, 129)
        lines = [b"123456789\n"] * 40
        lines[12] = lines[-1] = b"the zebra\n"  # what the question asks for, where attention is
        core.worker = Worker(line)
        request = body(prompt=[*b"".join(lines)], xargs=opt_in(pdd_refine_ratio=0.5))
        await client.post("/v1/completions", json=request)
        refined = (await settled(client))["refinement"]
        assert (refined["method"], refined["window"], refined["layers"]) == ("attention", 2, [1])
        assert len(refined["kept_token_ids"]) == 200
        assert set(range(400)[line]) <= set(refined["kept_indices"])


async def test_workers_that_cannot_answer_cost_the_refined_prompt_alone(serve):
    async with serve(worker_cls=WORKER_CLS) as (client, core):
        core.worker = object()
        request = body(prompt=PROMPT, xargs=opt_in(pdd_refine_ratio=0.5))
        answer = (await client.post("/v1/completions", json=request)).json()
        assert answer["choices"][0]["stop_reason"] == "pdd_handoff"
        assert (await settled(client))["refinement"]["reason"] == "not_captured"
