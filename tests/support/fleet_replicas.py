"""Replicas of one fleet in one process: a fake engine each, and a real Valkey or Redis that they share."""

import asyncio

from fastapi import FastAPI
from httpx2 import ASGITransport, AsyncClient
from prometheus_client import CollectorRegistry
from vllm_fakes import FakeEngine, output, sampling_params

from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.generate_recorder import GenerateRecorder
from pdd_vllm_plugin.handoff_routes import make_router
from pdd_vllm_plugin.handoff_service import HandoffService
from pdd_vllm_plugin.handoff_store import HandoffStore
from pdd_vllm_plugin.metrics import CloudMetrics
from pdd_vllm_plugin.shared_store.shared_store import SharedStore

PROMPT = (31001, 31002, 31003)
ID = "a" * 32
CHAT_ID = "chatcmpl-" + "c" * 20


class Replica:
    """The plugin's routes over a fake engine and the shared store."""

    def __init__(self, url, **config):
        self.engine = FakeEngine([output([7], "a"), output([8], "b"), output([9], "c", "stop")])
        self.registry = CollectorRegistry()
        self.service = HandoffService(CloudMetrics(self.registry))
        self.service.config = PDDConfig(store=url, **{"cancel_timeout_s": 0.5, **config})
        self.service.store = HandoffStore(self.service.config)
        self.service.engine_client = self.engine
        self.shared = SharedStore(self.service)
        self.recorder = GenerateRecorder(
            self.engine, self.service.store, model="m", tokenizer="digest", metrics=self.service.metrics
        )
        self.streams = []  # kept, or the garbage collector would end them as a leaving client does
        app = FastAPI()
        app.include_router(make_router(self.service))
        self.client = AsyncClient(transport=ASGITransport(app), base_url="http://plugin")

    def begin(self, handoff_id=ID, request_id=CHAT_ID, prompt=PROMPT):
        """Begin a request; its outputs come as the stream is read."""
        params = sampling_params({"pdd_handoff": handoff_id})
        self.streams.append(self.recorder.generate({"prompt_token_ids": list(prompt)}, params, request_id))
        return self.streams[-1]

    async def finish(self, handoff_id=ID, request_id=CHAT_ID, prompt=PROMPT):
        """Make a whole answer, and wait until its state is written."""
        before = self.count("pdd_store_states_total", outcome="stored")
        async for _ in self.begin(handoff_id, request_id, prompt):
            pass
        await self.has_stored(before + 1)

    async def has_stored(self, states):
        """Wait until so many states have been written."""
        await eventually(lambda: self.count("pdd_store_states_total", outcome="stored") >= states)
        assert self.count("pdd_store_states_total", outcome="stored") == states

    async def has_removed(self):
        """Wait until what was deleted is out of the store."""
        self.shared._pass_on()
        await self.shared._thread.result(asyncio.sleep(0))  # it knows all that was told before
        await eventually(lambda: not self.shared._writer._removals)

    def count(self, name, **labels):
        return self.registry.get_sample_value(name, labels)

    async def up(self):
        await eventually(lambda: self.count("pdd_store_up"))

    async def call(self, method, path, **query):
        return await self.client.request(method, f"/v1{path}", params=query)


async def eventually(condition):
    async with asyncio.timeout(30):
        while not condition():
            await asyncio.sleep(0.005)
