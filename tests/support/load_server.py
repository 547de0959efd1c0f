"""A server that answers as vLLM does, as far as clients that measure can tell. It writes down what it is asked."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace

import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Route

METRICS = """# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",cache_dtype="auto",engine="0",num_gpu_blocks="512"} 1.0
"""


@dataclass
class FakeServer:
    """`gap`: seconds between tokens. `refuses`: fields that give a 400. `pdd`: what the last event tells."""

    gap: float = 0.0
    prefill_s_per_token: float = 0.0
    step: SimpleNamespace | None = None
    """Where set, tokens come as from one engine: `base` seconds a step, `per_sequence`, `per_context_token`."""
    refuses: tuple[str, ...] = ()
    fails: dict[int, str] = field(default_factory=dict)
    """Number of the answering request, from 1 -> "429", "break" or "error event"."""
    stalls_after: float = math.inf
    """Requests behind so many get no token."""
    together: int = 0
    """None but the first request, a probe, gets its last token before so many have run at a time."""
    pdd: dict | None = None
    owned_by: str = "vllm"
    max_model_len: int = 4096
    plugin: bool = False
    key: str | None = None
    requests: list = field(default_factory=list)
    running: int = 0
    most_running: int = 0
    gone: int = 0
    """Requests whose client went away before the end."""
    context: int = 0
    url: str = ""

    def app(self) -> Starlette:
        return Starlette(
            routes=[
                Route("/health", lambda _: PlainTextResponse("")),
                Route("/metrics", lambda _: PlainTextResponse(METRICS)),
                Route("/v1/models", self._models),
                Route("/v1/pdd/info", self._info),
                Route("/v1/completions", self._complete, methods=["POST"]),
            ]
        )

    def _models(self, request):
        if self.key is not None and request.headers.get("authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": "Unauthorized"}, 401)
        one = {"id": "fake", "object": "model", "owned_by": self.owned_by, "max_model_len": self.max_model_len}
        return JSONResponse({"object": "list", "data": [one]})

    def _info(self, _):
        if not self.plugin:
            return JSONResponse({"error": {"message": "Not Found", "code": 404}}, 404)
        return JSONResponse({"engine": "vllm 0.0", "refinement": "attention"})

    async def _complete(self, request):
        body = await request.json()
        self.requests.append(body)
        number = len(self.requests)
        if refused := [name for name in self.refuses if name in body]:
            return JSONResponse({"error": {"message": f"{refused[0]} is not known", "code": 400}}, 400)
        if self.fails.get(number) == "429":
            return JSONResponse({"error": {"message": "busy", "type": "rate_limit_error"}}, 429)
        return StreamingResponse(self._stream(body, number), media_type="text/event-stream")

    async def _stream(self, body, number):
        failure = self.fails.get(number)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        length, wanted = len(body["prompt"]), body["max_tokens"]
        self.context += length
        try:
            await asyncio.sleep(self.prefill_s_per_token * length + self._step_s())
            while number > self.stalls_after:
                await asyncio.sleep(0.01)
            for index in range(wanted):
                if index:
                    await asyncio.sleep(self._step_s())
                while index == wanted - 1 and number > 1 and self.most_running < self.together:
                    await asyncio.sleep(0.01)
                self.context += 1
                choice = {"index": 0, "text": "x", "finish_reason": None}
                if body.get("return_token_ids"):
                    choice["token_ids"] = [7]
                if index == wanted - 1:
                    choice["finish_reason"] = "length"
                if failure == "error event" and index == 1:
                    yield _sse({"error": {"message": "engine died", "type": "InternalServerError", "code": 500}})
                    return
                if failure == "break" and index == 1:
                    return
                told = {"pdd": self.pdd} if self.pdd and index == wanted - 1 else {}
                yield _sse({"choices": [choice], **told})
            usage = {"prompt_tokens": length, "completion_tokens": wanted}
            yield _sse({"choices": [], "usage": usage})
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.gone += 1
            raise
        finally:
            self.running -= 1
            self.context -= length

    def _step_s(self) -> float:
        if self.step is None:
            return self.gap
        return self.step.base + self.step.per_sequence * self.running + self.step.per_context_token * self.context


def _sse(event) -> str:
    return f"data: {json.dumps(event)}\n\n"


@contextmanager
def serving(fake: FakeServer):
    """Serve `fake` on a free port, on a thread of its own."""
    config = uvicorn.Config(fake.app(), host="127.0.0.1", port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            threading.Event().wait(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        fake.url = f"http://127.0.0.1:{port}"
        yield fake
    finally:
        server.should_exit = True
        thread.join()
