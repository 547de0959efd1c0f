"""What answers made at the same time gain: `--parallel N` against one after the other, on one model in one run.

The same prompts are answered in turns, A B A B ...: one after the other by an engine with one slot, and all at
once by one with `--answers` slots. Prompts differ and are cold. Each pair gives a ratio of answers' tokens per
second; the median is the result. Gaps are between two tokens of an answer, as its reader sees them without pacing.

    python benchmarks/answers_at_once.py [--gguf FILE] [--answers 4] [--rounds 5] [--threads 2] [--prompt 200]
        [--steps 64] [--gpu-layers auto]
"""

import argparse
import asyncio
import json
import math
import statistics
import time
from itertools import pairwise
from pathlib import Path

from pdd_cli.demo_model import device_gguf
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, DeviceEngine
from pdd_llamacpp_adapter.engine.speed import DeviceSpeed, probe

N_CTX = 2048


async def answer(engine: DeviceEngine, speed: DeviceSpeed, prompt: list[int], steps: int) -> list[float]:
    """Return when each token of an answer came, in seconds of the clock."""
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=steps, ignore_eos=True)
    async with AnswerSession(request, engine=engine, rate=math.inf, speed=speed) as session:
        return [time.perf_counter() async for _ in session]


class Way:
    """One engine, and how the answers come to it."""

    def __init__(self, gguf: Path, options: argparse.Namespace, slots: int) -> None:
        self.engine = DeviceEngine.open(
            gguf, n_ctx=N_CTX, threads=options.threads, parallel=slots, gpu_layers=options.gpu_layers
        )
        self.speed = DeviceSpeed()
        self._at_once, self._steps = slots > 1, options.steps
        asyncio.run(probe(self.engine, self.speed, size=self.engine.vocab.size))
        self.rates: list[float] = []
        self.gaps: list[float] = []
        self.first: list[float] = []

    async def _all(self, prompts: list[list[int]]) -> list[list[float]]:
        works = [answer(self.engine, self.speed, prompt, self._steps) for prompt in prompts]
        return list(await asyncio.gather(*works)) if self._at_once else [await work for work in works]

    def round(self, prompts: list[list[int]]) -> None:
        for slot in self.engine.slots:
            slot.reset()
        begun = time.perf_counter()
        times = asyncio.run(self._all(prompts))
        self.rates.append(sum(map(len, times)) / (time.perf_counter() - begun))
        self.gaps += [after - before for one in times for before, after in pairwise(one)]
        self.first += [one[0] - begun for one in times]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="default: the demo model")
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--prompt", type=int, default=200)
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--gpu-layers", default="auto")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    gguf = options.gguf or device_gguf()
    ways = {"one by one": Way(gguf, options, 1), "together": Way(gguf, options, options.answers)}
    for number in range(options.rounds):
        prompts = [
            [100 + (i * 31 + one * 977 + number * 131) % 20000 for i in range(options.prompt)]
            for one in range(options.answers)
        ]
        for way in ways.values():
            way.round(prompts)
    alone, together = ways.values()
    ratios = [after / before for before, after in zip(alone.rates, together.rates, strict=True)]
    print(f"{options.answers} answers of {options.steps} tokens, prompts of {options.prompt}, {gguf.name}")
    for name, way in ways.items():
        gaps = sorted(way.gaps)
        print(
            f"{name:>10}: {statistics.median(way.rates):7.1f} tokens/s, "
            f"gap p50 {1e3 * gaps[len(gaps) // 2]:.0f} ms, "
            f"p99 {1e3 * gaps[int(len(gaps) * 0.99)]:.0f} ms, longest {1e3 * gaps[-1]:.0f} ms, "
            f"first token after {statistics.mean(way.first):.2f} s in the mean"
        )
    print(f"together / one by one: {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    print(f"a step of {options.answers} takes {together.engine.sharing.together:.2f} times as long as one's")
    if options.json:
        options.json.write_text(json.dumps({"ratios": ratios, **{k: v.rates for k, v in ways.items()}}))


if __name__ == "__main__":
    main()
