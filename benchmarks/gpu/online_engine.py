"""vLLM's asynchronous engine with the plugin, in this process, and requests that arrive by the clock."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import numpy as np
from arrivals import Arrival
from engine_process import EngineSettings, set_environment
from llama_shape import SHAPES


@dataclass(slots=True)
class Served:
    """What became of one request. Times in seconds, of ``time.perf_counter``."""

    arrival: Arrival
    asked: int
    """Tokens that the cloud was to make."""
    due: float
    sent: float | None = None
    first: float | None = None
    last: float | None = None
    tokens: int = 0
    done: bool = False
    """The cloud's part came to its end."""

    def ttft(self, now: float) -> float:
        """Return the time to the first token; where there is none yet, how long it has been waited for."""
        return (self.first if self.first is not None else now) - self.due

    @property
    def tpot(self) -> float | None:
        """Mean seconds per token after the first."""
        return None if self.tokens < 2 else (self.last - self.first) / (self.tokens - 1)


class _Client:
    """What the plugin's service needs of an API server's engine: here there is no tokenizer."""

    all_special_ids = ()
    eos_token_id = None

    def __init__(self, engine: Any) -> None:
        self.vllm_config = engine.vllm_config
        self.generate = engine.slots[0].generate

    def get_tokenizer(self) -> Any:
        return self

    def get_vocab(self) -> dict[str, int]:
        return {"": 0}


class Cloud:
    """One engine, which serves opted-in requests and others."""

    def __init__(self, settings: EngineSettings) -> None:
        set_environment(plugin=True)
        from vllm import AsyncEngineArgs, __version__
        from vllm.v1.engine.async_llm import AsyncLLM

        from pdd_vllm_plugin.config import PDDConfig
        from pdd_vllm_plugin.handoff_service import HandoffService

        # in chunks, but for the first token: thousands of tokens a second are much for one Python thread
        arguments = settings.arguments() | {"disable_log_stats": True, "stream_interval": 8}
        # a burst has more requests than states are kept by default; nobody reads those of ended ones here
        arguments["additional_config"] = {"pdd": {"max_handoffs": 2048, "ttl_s": 10}}
        self._engine = AsyncLLM.from_engine_args(AsyncEngineArgs(**arguments))
        config = self._engine.vllm_config
        # the plugin's part of the API server's work, for all requests, as there
        client = _Client(self._engine)
        HandoffService().start(client, PDDConfig.from_vllm(config), settings.shape)
        self._generate = client.generate
        size = SHAPES[settings.shape]["vocab_size"]
        self._ids = (size // 100, size - size // 100)
        self._numbers = np.random.default_rng(0)
        self._count = 0
        self.facts = {
            "vllm": __version__,
            "kv_tokens": config.cache_config.num_gpu_blocks * config.cache_config.block_size,
            "scheduler": config.scheduler_config.get_scheduler_cls().__name__,
        }

    def prompt(self, tokens: int) -> list[int]:
        """Return a random prompt."""
        return self._numbers.integers(*self._ids, size=tokens).tolist()

    async def serve(
        self, served: Served, prompt: list[int], *, budget: int | None, least: int | None = None
    ) -> None:
        """Send one request, opted in where it has a budget, and note when its tokens come.

        `least` is the budget down to which the plugin may go under load.
        """
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        extra = None if budget is None else {"pdd_handoff": uuid4().hex, "pdd_decode_budget": budget}
        if extra is not None and least is not None:
            extra["pdd_least_budget"] = least
        params = SamplingParams(
            max_tokens=served.arrival.output,
            temperature=0,
            ignore_eos=True,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
            extra_args=extra,
        )
        self._count += 1
        served.sent = time.perf_counter()
        async for output in self._generate(tokens_input(prompt), params, f"bench-{self._count}"):
            count = len(output.outputs[0].token_ids)
            if count:
                served.last = time.perf_counter()
                served.first = served.first or served.last
                served.tokens += count
        served.done = True

    async def warm_up(self, *, requests: int = 64, prompt: int = 2048) -> None:
        """Serve some requests, so that the first that counts does not pay for first times."""
        ones = [Served(Arrival(0, prompt, 32), 32, due=time.perf_counter()) for _ in range(requests)]
        await asyncio.gather(*[self.serve(one, self.prompt(prompt), budget=None) for one in ones])

    def close(self) -> None:
        """End the engine."""
        self._engine.shutdown()
