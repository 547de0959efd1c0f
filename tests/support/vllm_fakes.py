"""Stand-ins for vLLM's engine, as small as the plugin's use of it."""

import asyncio
import copy
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace


class Kind(Enum):
    """vLLM's ``RequestOutputKind``."""

    CUMULATIVE = 0
    DELTA = 1
    FINAL_ONLY = 2


class Params(SimpleNamespace):
    """vLLM's ``SamplingParams``."""

    def clone(self):
        return copy.copy(self)


def sampling_params(extra_args=None, *, n=1, kind="DELTA", **more):
    given = {"temperature": 0.0, "max_tokens": 8, "min_tokens": 0}
    return Params(extra_args=extra_args, n=n, output_kind=Kind[kind], **{**given, **more})


def output(token_ids, text="", finish_reason=None, stop_reason=None, *, prompt=(1, 2, 3), kv=None, logprobs=None):
    completion = SimpleNamespace(
        index=0,
        token_ids=token_ids,
        text=text,
        logprobs=logprobs,
        finish_reason=finish_reason,
        stop_reason=stop_reason,
    )
    return SimpleNamespace(
        prompt_token_ids=list(prompt),
        outputs=[completion],
        kv_transfer_params=kv,
        finished=finish_reason is not None,
    )


def parallel(*, engines=1, first=0, local=None, **more):
    """vLLM's ``ParallelConfig``: `engines` in all, `local` of them on this machine, from rank `first` on."""
    return SimpleNamespace(
        data_parallel_index=first, data_parallel_size=engines, local_engines_only=local is not None,
        data_parallel_size_local=local or engines, **{"worker_cls": "auto", "_api_process_count": 1, **more},
    )  # fmt: skip


class FakeCoreClient:
    """vLLM's client of several engines: notes who was asked what; an engine in `held` answers once let go."""

    def __init__(self, ranks=(0, 1)):
        self.core_engines = [rank.to_bytes(2, "little") for rank in ranks]
        self.asked = []
        self.held = {}
        self.answers = {}

    async def _call_utility_async(self, method, *args, engine):
        rank = int.from_bytes(engine, "little")
        self.asked.append((rank, method, *args))
        if rank in self.held:
            await self.held[rank].wait()
        answer = self.answers.get(rank)
        return answer(*args) if callable(answer) else answer


@dataclass
class FakeEngine:
    """Streams `outputs`; counts what was asked of it."""

    outputs: list = field(default_factory=list)
    aborted: list = field(default_factory=list)
    closed: int = 0
    paused_calls: int = 0
    answers_after: float = 0.0
    calls: list = field(default_factory=list)
    params: list = field(default_factory=list)
    vllm_config: SimpleNamespace = field(default_factory=lambda: SimpleNamespace(parallel_config=parallel()))

    def generate(self, prompt, params, request_id, **kwargs):
        self.calls.append((request_id, kwargs))
        self.params.append(params)

        async def stream():
            try:
                for item in self.outputs:
                    await asyncio.sleep(0)
                    yield item
            finally:
                self.closed += 1

        return stream()

    async def abort(self, request_id):
        self.aborted.append(request_id)

    async def is_paused(self):
        self.paused_calls += 1
        await asyncio.sleep(self.answers_after)
        return False
