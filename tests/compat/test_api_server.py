"""vLLM's API server with the plugin attached as vLLM attaches it; only model and workers are missing."""

import asyncio
import json

import pytest
from engine_by_hand import api_server
from vllm_by_hand import scheduler_by_hand

pytestmark = pytest.mark.anyio
ID = "h" * 32
TOKEN = ord("a")


@pytest.fixture
async def server(model_dir, monkeypatch):
    scheduler = scheduler_by_hand(model_dir)
    async with api_server(scheduler, model_dir, monkeypatch, token=TOKEN) as parts:
        yield parts


def completion(*, xargs=None, **more):
    given = {"model": "m", "prompt": [1, 2, 3, 4, 5], "max_tokens": 20, "ignore_eos": True, **more}
    return {**given, "vllm_xargs": xargs} if xargs else given


async def test_it(server):
    client, core, engine = server
    info = (await client.get("/v1/pdd/info")).json()
    answer = await client.post("/v1/completions", json=completion(xargs={"pdd_handoff": ID, "pdd_decode_budget": 4}))
    print(info, answer.json())
    assert 0
