"""How evenly an answer is shown that begins in the cloud and ends on the device: gaps beside the target.

Starts vLLM and llama.cpp on this machine, asks for several answers, and prints p50, p99 and the longest gap of all
of them, beside the target's, and the gap at the switch beside the median. `--pacing unlimited` shows what it would
be without a speed controller.

    python benchmarks/smoothness.py [--answers 8] [--rate 6] [--pacing adaptive] [--url URL --api-key KEY]
"""

import argparse
import asyncio
import json
import math
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import numpy as np

from pdd_cli.demo_model import prepare
from pdd_cli.launcher import CloudServer
from pdd_core.timeline import Source
from pdd_llamacpp_adapter import (
    AnswerRequest,
    AnswerSession,
    CloudClient,
    DeviceEngine,
    DeviceProfile,
    DeviceSpeed,
)
from pdd_llamacpp_adapter.session.pacing import PACINGS, default_policies

KEY = "bench-key"
PROFILE = DeviceProfile("bench", prefill_tps=80.0, decode_tps=20.0)
"""Leaves the cores to the cloud, which shares this machine."""


async def answers(engine: DeviceEngine, url: str, key: str, options: argparse.Namespace) -> list:
    speed, outcomes = DeviceSpeed(), []
    async with CloudClient(url, api_key=key) as cloud:
        await cloud.connect(engine.vocab)
        for number in range(options.answers + 1):
            engine.reset()
            prompt = [100 + (number * 7919 + i * 31) % 40000 for i in range(400)]
            request = AnswerRequest(
                prompt_token_ids=prompt, max_tokens=120, ignore_eos=True, decode_budget=options.budget
            )
            async with AnswerSession(
                request,
                engine=engine,
                cloud=cloud,
                rate=options.rate,
                flush_within=math.inf,  # the end of an answer keeps to the rate as well
                policies=default_policies(options.pacing),
                profile=PROFILE,
                speed=speed,
            ) as answer:
                async for _ in answer:
                    pass
            if number:  # the first warms both engines up
                outcomes.append(answer.outcome)
    return outcomes


def figures(outcomes: list, rate: float) -> dict:
    gaps = [gap for outcome in outcomes for gap in outcome.timeline.gaps]
    switches = []
    for outcome in outcomes:
        tokens = outcome.timeline.tokens
        switches += [
            later.shown_at - earlier.shown_at
            for earlier, later in pairwise(tokens)
            if (earlier.source, later.source) == (Source.CLOUD, Source.DEVICE)
        ]
    p50, p99 = (float(np.percentile(gaps, q)) for q in (50, 99))
    return {
        "answers": len(outcomes),
        "target_gap_ms": 1000 / rate,
        "p50_ms": 1000 * p50,
        "p99_ms": 1000 * p99,
        "max_ms": 1000 * max(gaps),
        "switches": len(switches),
        "switch_over_median": float(np.median(switches)) / p50,
        "worst_switch_over_median": max(switches) / p50,
        "cloud_tokens": sum(outcome.timeline.count(Source.CLOUD) for outcome in outcomes),
        "device_tokens": sum(outcome.timeline.count(Source.DEVICE) for outcome in outcomes),
        "extensions": sum(outcome.extensions for outcome in outcomes),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--answers", type=int, default=8)
    parser.add_argument("--rate", type=float, default=6.0)
    parser.add_argument("--budget", type=int, default=48)
    parser.add_argument("--pacing", choices=PACINGS, default=PACINGS[0])
    parser.add_argument("--url", help="a running cloud, instead of starting one")
    parser.add_argument("--api-key", default=KEY)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    prepared = prepare()
    with ExitStack() as resources:
        if options.url is None:
            server = CloudServer(prepared.vllm_dir, api_key=KEY)
            resources.enter_context(server)
            options.url = server.base_url
        engine = resources.enter_context(DeviceEngine.open(prepared.gguf, n_ctx=1024))
        result = figures(asyncio.run(answers(engine, options.url, options.api_key, options)), options.rate)
    print(json.dumps({"pacing": options.pacing, **result}, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
