"""How soon a device knows its own speed, on real engines: from a profile wrong by four, and when it slows down.

Real vLLM and real llama.cpp, each on a core of its own.

1. The device begins with a profile that is four times too fast, then with one four times too slow, and hands
   answers over. After each answer the same engine reads as many tokens and decodes a few, alone: the truth beside
   the estimate, which is printed as a ratio to the median truth.
2. A server's device is slowed down to half by a busy process on its core, after it has come to know its speed.
   Answers whose longest gap is over twice the target's are counted, before and after, by their order.

    python benchmarks/calibration.py [--answers 6] [--prompt 400] [--cloud-core 0] [--device-core 1]
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from catch_up import KEY, server_on

RATE = 5.0
"""Tokens per second that are shown: what half a core can still decode."""
ANSWER = 60


def prompt_of(number: int, length: int) -> list[int]:
    """Return token ids that no other prompt begins with."""
    return [100 + (number * 7919 + i * 31) % 40000 for i in range(length)]


async def handed_over(engine, cloud, number, options, on_ended=None):
    """Make one answer, which ends on the device."""
    from pdd_core.patience import Patience
    from pdd_llamacpp_adapter import AnswerRequest, AnswerSession

    engine.reset()
    request = AnswerRequest(
        prompt_token_ids=prompt_of(number, options.prompt), max_tokens=40, ignore_eos=True, decode_budget=16
    )
    patience = Patience(late_s=math.inf, first_token_s=120.0)
    async with AnswerSession(
        request, engine=engine, cloud=cloud, rate=math.inf, patience=patience, on_ended=on_ended
    ) as answer:
        async for _ in answer:
            pass
    return request


async def truth(engine, number, options):
    """Return tokens per second of prefill and decode, with nothing else at work on the core."""
    engine.reset()
    ids = prompt_of(10_000 + number, options.prompt)
    begun = time.perf_counter()
    for start in range(0, len(ids), 64):
        await engine.slots[0].extend(ids[start : start + 64])
    read = time.perf_counter()
    for token in ids[:24]:
        await engine.slots[0].extend([token], want_logits=True)
    return len(ids) / (read - begun), 24 / (time.perf_counter() - read)


async def from_wrong(factor, engine, url, options):
    """Return the estimates after each answer and what was measured beside them."""
    from pdd_core.env import ServeSettings
    from pdd_core.planner.plan_file import PlanFile
    from pdd_core.planner.profiles import MeasuredDevice, RatePoint
    from pdd_llamacpp_adapter import CloudClient
    from pdd_llamacpp_adapter.runtime.learning import Learning

    first = await truth(engine, 0, options)
    prefill, decode = ((RatePoint(at=0, value=factor * speed),) for speed in first)
    profile = MeasuredDevice(name="wrong", model="demo", prefill_tps=prefill, decode_tps=decode, n_ctx=1024)
    learning = Learning(ServeSettings(), PlanFile(device=profile), n_ctx=1024)
    rows = []
    async with CloudClient(url, api_key=KEY) as cloud:
        await cloud.connect(engine.vocab)
        for number in range(1, options.answers + 1):
            ended = []
            request = await handed_over(engine, cloud, number, options, ended.append)
            learning.ended(ended[0], request, group="bench", model="demo")
            state = learning.device.state(options.prompt, 0, 40)
            rows.append((state.prefill_tps.mean, state.decode_tps.mean, *await truth(engine, number, options)))
            print(f"prior times {factor:g}, after {number}: {rows[-1]}", flush=True)
    true_prefill, true_decode = (statistics.median([first[i], *(row[2 + i] for row in rows)]) for i in (0, 1))
    return {
        "prior_over_truth": factor,
        "truth": {"prefill_tps": true_prefill, "decode_tps": true_decode},
        "truth_spread": [min(row[2] for row in rows) / true_prefill, max(row[2] for row in rows) / true_prefill],
        "prefill_over_truth": [round(row[0] / true_prefill, 3) for row in rows],
        "decode_over_truth": [round(row[1] / true_decode, 3) for row in rows],
    }


@contextmanager
def busy():
    """Take half of this process's core."""
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        hog.kill()
        hog.wait()


def slowed(gguf, url, options):
    """Return the longest gaps of answers before and after the device slows down to half."""
    from pdd_llamacpp_adapter import PDDevice

    def ask(device, number):
        stream = device.completions.create(
            model=device.model,
            prompt=prompt_of(20_000 + number, options.prompt),
            max_tokens=ANSWER,
            stream=True,
            temperature=0,
            extra_body={"ignore_eos": True},
        )
        *_, last = stream
        pdd = last.pdd
        told = {"max_gap_s": pdd["max_gap_s"], "ttft_s": pdd["ttft_s"], "verdict": pdd["plan"]["verdict"]}
        told |= {"tokens": pdd["tokens"], "prefill_tps": pdd["plan"]["inputs"]["prefill_tps"]}
        told |= {"extensions": pdd["extensions"]}
        print(told, flush=True)
        return told

    settings = {"cloud_url": url, "cloud_api_key": KEY, "n_ctx": 1024, "rate": RATE, "plan": "handoff"}
    with PDDevice(gguf, **settings) as device:
        before = [ask(device, number) for number in range(options.answers)]
        with busy():
            after = [ask(device, 100 + number) for number in range(options.answers + 2)]

    def stalled(answers):
        return [number for number, one in enumerate(answers) if one["max_gap_s"] > 2 / RATE]

    return {
        "rate": RATE,
        "stalled_before": stalled(before),
        "stalled_after": stalled(after),
        "answers": {"before": before, "after": after},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--answers", type=int, default=6)
    parser.add_argument("--prompt", type=int, default=400, help="tokens")
    parser.add_argument("--cloud-core", type=int, default=0)
    parser.add_argument("--device-core", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    from pdd_cli.demo_model import prepare

    prepared = prepare()
    os.sched_setaffinity(0, {options.device_core})  # before llama.cpp makes its threads
    from pdd_llamacpp_adapter import DeviceEngine

    with ExitStack() as resources:
        os.environ["PDD_CACHE_DIR"] = resources.enter_context(TemporaryDirectory())  # nothing was learnt before
        url = resources.enter_context(server_on(options.cloud_core, prepared.vllm_dir, None)).base_url
        with DeviceEngine.open(prepared.gguf, n_ctx=1024, threads=1) as engine:
            wrong = [asyncio.run(from_wrong(factor, engine, url, options)) for factor in (4.0, 0.25)]
        result = {"wrong": wrong, "slowed": slowed(prepared.gguf, url, options)}
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
