"""What the engine's thread and bookkeeping cost, against llama.cpp called directly: prefill and decode.

One model, two contexts, the same threads; they take turns, A B A B ..., each round a cold context. Each pair gives
a ratio; the median is the result. The noise is direct llama.cpp against itself, each round against the one before.

    python benchmarks/engine_speed.py [--gguf FILE] [--rounds 9] [--threads 1] [--prompt 512] [--steps 48]
        [--busy 0.5] [--gpu-layers all] [--flash-attn] [--chunk 512]

Both put all layers that fit on the GPU, if llama.cpp is built for one, or those that `--gpu-layers` says.
llama.cpp by itself reads the prompt in chunks of 64 tokens, or `--chunk`. With `--busy`, the event loop is at work
for this share of the time beside both, as beside many clients.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable
from itertools import pairwise
from pathlib import Path

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions
import numpy as np

from pdd_cli.demo_model import device_gguf
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, DeviceEngine
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed

N_CTX = 2048
SPEED = DeviceSpeed()
"""What is known of the engine; a server keeps it, too. The first round, which does not count, teaches it."""
BUSY_S = 0.02
"""The event loop's work comes in pieces of this length."""


class Direct:
    """llama.cpp as a C program would call it, greedy."""

    def __init__(self, path: Path, threads: int, gpu_layers: int, *, flash_attn: bool) -> None:
        of_model = L.llama_model_default_params()
        of_model.n_gpu_layers = gpu_layers
        self.model = L.llama_model_load_from_file(str(path).encode(), of_model)
        params = L.llama_context_default_params()
        params.n_ctx, params.n_batch, params.n_ubatch = N_CTX, 512, 512
        params.n_threads = params.n_threads_batch = threads
        kinds = (L.LLAMA_FLASH_ATTN_TYPE_DISABLED, L.LLAMA_FLASH_ATTN_TYPE_ENABLED)
        params.flash_attn_type = kinds[flash_attn]
        self.ctx = L.llama_init_from_model(self.model, params)
        self.n_vocab = L.llama_vocab_n_tokens(L.llama_model_get_vocab(self.model))
        self.batch = L.llama_batch_init(512, 0, 1)
        for i in range(512):
            self.batch.n_seq_id[i], self.batch.seq_id[i][0] = 1, 0

    def decode(self, ids: list[int], past: int) -> None:
        self.batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            self.batch.token[i], self.batch.pos[i], self.batch.logits[i] = token, past + i, i == len(ids) - 1
        assert L.llama_decode(self.ctx, self.batch) == 0

    def round(self, prompt: list[int], steps: int, chunk: int) -> tuple[float, float]:
        """Return prefill and decode rates, tokens per second."""
        L.llama_memory_clear(L.llama_get_memory(self.ctx), True)
        begun = time.perf_counter()
        for past in range(0, len(prompt), chunk):
            self.decode(prompt[past : past + chunk], past)
        token, middle = self.most_likely(), time.perf_counter()
        for step in range(steps):
            self.decode([token], len(prompt) + step)
            token = self.most_likely()
        return len(prompt) / (middle - begun), steps / (time.perf_counter() - middle)

    def most_likely(self) -> int:
        """Return the next token; a GPU computes until its logits are read."""
        return int(np.argmax(np.ctypeslib.as_array(L.llama_get_logits_ith(self.ctx, -1), (self.n_vocab,))))


async def ours(engine: DeviceEngine, prompt: list[int], steps: int) -> tuple[float, float]:
    """The same by a whole session: engine, sampler, text, pacing without a limit."""
    engine.reset()
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=steps + 1, ignore_eos=True)
    begun = time.perf_counter()
    async with AnswerSession(request, engine=engine, rate=float("inf"), speed=SPEED) as answer:
        first = None
        async for _ in answer:
            first = first or time.perf_counter()
        ended = time.perf_counter()
    return len(prompt) / (first - begun), steps / (ended - first)


async def beside_work(busy: float, work: Awaitable[tuple[float, float]]) -> tuple[float, float]:
    """Return what `work` does, while the event loop computes for a share of the time."""

    async def compute() -> None:
        while busy:
            until = time.perf_counter() + BUSY_S
            while time.perf_counter() < until:
                pass
            await asyncio.sleep(BUSY_S * (1 - busy) / busy)

    beside = asyncio.create_task(compute())
    try:
        return await work
    finally:
        beside.cancel()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="default: the demo model")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--prompt", type=int, default=512)
    parser.add_argument("--steps", type=int, default=48)
    parser.add_argument("--busy", type=float, default=0.0)
    parser.add_argument("--gpu-layers", default="auto", help="auto, all or a number")
    parser.add_argument("--flash-attn", action="store_true")
    parser.add_argument("--chunk", type=int, default=64, help="tokens that llama.cpp by itself reads at once")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gguf = options.gguf or device_gguf()
    prompt = [100 + i * 31 % 40000 for i in range(options.prompt)]
    flash_attn = "on" if options.flash_attn else "off"
    params = LlamaParams.of(
        n_ctx=N_CTX, threads=options.threads, gpu_layers=options.gpu_layers, flash_attn=flash_attn
    )
    with DeviceEngine.open(gguf, params) as engine:
        where = list(engine.placement.lines())
        print("\n".join(where))
        direct = Direct(gguf, options.threads, engine.placement.gpu_layers, flash_attn=options.flash_attn)
        pairs = []
        for number in range(options.rounds + 1):
            theirs = asyncio.to_thread(direct.round, prompt, options.steps, options.chunk)
            works = (ours(engine, prompt, options.steps), theirs)
            pair = [asyncio.run(beside_work(options.busy, work)) for work in works]
            if number:  # the first pages in
                pairs.append(pair)
    result = {**vars(options), "where": where}
    for kind, index in (("prefill", 0), ("decode", 1)):
        ratios = [mine[index] / theirs[index] for mine, theirs in pairs]
        noise = [abs(b[1][index] / a[1][index] - 1) for a, b in pairwise(pairs)]
        result[kind] = {
            "ratio": statistics.median(ratios),
            "least": min(ratios),
            "greatest": max(ratios),
            "noise": statistics.median(noise),
            "direct_tps": statistics.median(theirs[index] for _, theirs in pairs),
        }
        print(
            f"{kind}: ours / direct {result[kind]['ratio']:.3f} ({min(ratios):.3f} to {max(ratios):.3f}), "
            f"noise {result[kind]['noise']:.1%}, direct {result[kind]['direct_tps']:.0f} tokens/s"
        )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2, default=str))


if __name__ == "__main__":
    main()
