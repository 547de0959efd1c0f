"""vLLM's front end in this process, up to its HTTP routes, with a scheduler behind it and no model.

``AsyncLLM`` talks to its engine's process through a client. `EngineCoreByHand` stands in its place: requests and
outputs pass vLLM's own serialisation, a scheduler of ours decides, and each step gives each request one token.
"""

import asyncio
from contextlib import asynccontextmanager
from types import SimpleNamespace

import httpx2
from prometheus_client import REGISTRY
from vllm_by_hand import block_hasher, model_output

KEY = "choose-a-key"


class EngineCoreByHand:
    """Steps while requests are there; after `pause_at` steps it waits for `go_on`."""

    engine_ranks_managed = (0,)
    resources = SimpleNamespace(engine_dead=False)

    def __init__(self, scheduler, token):
        self.scheduler = scheduler
        self.token = token
        self.steps = 0
        self.pause_at = None
        self.paused = asyncio.Event()
        self.worker = object()
        self._changed = asyncio.Event()

    def go_on(self):
        self.pause_at = None
        self._changed.set()

    async def add_request_async(self, request):
        from vllm.v1.engine import EngineCoreRequest
        from vllm.v1.request import Request

        arrived = _sent(request, EngineCoreRequest)
        self.scheduler.add_request(Request.from_engine_core_request(arrived, block_hasher()))
        self._changed.set()

    async def abort_requests_async(self, request_ids):
        from vllm.v1.request import RequestStatus

        self.scheduler.finish_requests(request_ids, RequestStatus.FINISHED_ABORTED)

    async def get_output_async(self):
        from vllm.v1.engine import EngineCoreOutputs

        while True:
            await asyncio.sleep(0)  # the engine works beside the API server, not before it
            if self.steps == self.pause_at:
                self.paused.set()
            if self.steps == self.pause_at or not self.scheduler.has_requests():
                self._changed.clear()
                await self._changed.wait()
                continue
            step = self.scheduler.schedule()
            result = model_output(self.scheduler, step, self.token)
            self.steps += bool(step.total_num_scheduled_tokens)
            outputs = self.scheduler.update_from_output(step, result).get(0)
            if outputs is not None:
                return _sent(outputs, EngineCoreOutputs)

    async def is_scheduler_paused_async(self):
        return False

    async def collective_rpc_async(self, method, timeout=None, args=(), kwargs=None):
        return [getattr(self.worker, method)(*args)]

    async def get_supported_tasks_async(self):
        return ("generate",)

    def shutdown(self, timeout=None):
        pass


def _sent(message, kind):
    """Return what arrives in the other process."""
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    return MsgpackDecoder(kind).decode([bytes(part) for part in MsgpackEncoder().encode(message)])


@asynccontextmanager
async def api_server(scheduler, model_dir, monkeypatch, *, token, flags=()):
    """Yield (HTTP client, engine core) of vLLM's API server as `vllm serve` builds it."""
    from vllm.entrypoints.cli.launch import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core_client import EngineCoreClient

    try:
        from vllm.entrypoints.launchers.api_server.app_state import init_app_state
        from vllm.entrypoints.launchers.app import build_app
    except ModuleNotFoundError:  # 0.26
        from vllm.entrypoints.openai.api_server import build_app, init_app_state

    core = EngineCoreByHand(scheduler, token)
    monkeypatch.setattr(EngineCoreClient, "make_async_mp_client", staticmethod(lambda *_, **__: core))
    given = ["--model", str(model_dir), "--served-model-name", "m", "--api-key", KEY, *flags]
    args = make_arg_parser(FlexibleArgumentParser()).parse_args(given)
    engine = AsyncLLM(scheduler.vllm_config, executor_class=None, log_stats=False)
    try:
        app = build_app(args, ("generate",), scheduler.vllm_config.model_config)
        await init_app_state(engine, app.state, args, ("generate",))
        async with httpx2.AsyncClient(
            transport=httpx2.ASGITransport(app=app),
            base_url="http://vllm",
            headers={"authorization": f"Bearer {KEY}"},
        ) as client:
            yield client, core
    finally:
        engine.shutdown()
        # one process makes one server, and its metrics, in real life
        ours = {one for name, one in REGISTRY._names_to_collectors.items() if name.startswith("pdd_")}
        for collector in ours:
            REGISTRY.unregister(collector)
