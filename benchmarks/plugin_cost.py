"""What the plugin costs a server on which nobody opts in: throughput and TTFT against plain vLLM.

Both servers run on this machine at once and take turns, A B A B ...; only one is loaded at a time. Each pair
gives a ratio; the median is the result. The noise is what the same measurement says of plain vLLM against itself:
how far each plain round strays from the one before it.

    python benchmarks/plugin_cost.py [--model FOLDER] [--rounds 7] [--json FILE] [-- FLAGS OF VLLM ...]
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import openai

from pdd_cli.cloud_command import without_plugin
from pdd_cli.launcher import CloudServer

KEY = "bench-key"


@dataclass(frozen=True, slots=True)
class Round:
    """One burst of requests to one server."""

    tokens_per_s: float
    ttft_ms: float
    """Median over the burst's requests."""


def plain(server: CloudServer) -> CloudServer:
    """Make `server` a vLLM without the plugin."""
    server.command = without_plugin(server.command)
    return server


async def send(base_url: str, numbers: range, *, prompt_tokens: int, output_tokens: int, seed: int) -> list[float]:
    """Send one client's share of the requests at once; return each one's seconds to the first token."""

    async def one(number: int) -> float:
        prompt = [100 + (seed * 7919 + number * 104729 + i * 31) % 40000 for i in range(prompt_tokens)]
        begun, first, tokens = time.perf_counter(), None, 0
        stream = await client.completions.create(
            model=model, prompt=prompt, max_tokens=output_tokens, temperature=0, stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True},
        )  # fmt: skip
        async for chunk in stream:
            if chunk.choices and chunk.choices[0].token_ids:
                first = first or time.perf_counter() - begun
                tokens += len(chunk.choices[0].token_ids)
        assert tokens == output_tokens
        return first

    async with openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=600) as client:
        model = (await client.models.list()).data[0].id
        return list(await asyncio.gather(*[one(number) for number in numbers]))


def send_share(share: tuple[str, range, dict[str, int]]) -> list[float]:
    """Run `send` in a process of its own: one Python client is slower than a GPU."""
    base_url, numbers, load = share
    return asyncio.run(send(base_url, numbers, **load))


def burst(pool: Executor, base_url: str, *, clients: int, requests: int, **load: int) -> Round:
    """Send `requests` at once from several clients; every prompt is new, so no prefix is cached."""
    shares = [(base_url, range(client, requests, clients), load) for client in range(clients)]
    begun = time.perf_counter()
    first = [ttft for share in pool.map(send_share, shares) for ttft in share]
    seconds = time.perf_counter() - begun
    tokens = requests * load["output_tokens"]
    return Round(tokens_per_s=tokens / seconds, ttft_ms=1000 * statistics.median(first))


def measure(pool: Executor, urls: dict[str, str], rounds: int, **load: int) -> dict[str, list[Round]]:
    """Alternate between the servers, `rounds` times each after one warm-up."""
    results: dict[str, list[Round]] = {name: [] for name in urls}
    for number in range(rounds + 1):
        # the order changes from pair to pair, so that a drift of the machine favours neither
        for name in sorted(urls, reverse=bool(number % 2)):
            result = burst(pool, urls[name], seed=number, **load)
            if number:
                results[name].append(result)
            shown = f"{result.tokens_per_s:8.1f} tok/s  TTFT {result.ttft_ms:8.1f} ms"
            print(f"{'warm-up' if not number else f'round {number}'}: {name:7} {shown}", flush=True)
    return results


def ratio(results: dict[str, list[Round]], figure: str) -> dict[str, float]:
    """Median of plugin / plain over the pairs, and how far plain strays from itself."""
    with_plugin = [getattr(r, figure) for r in results["plugin"]]
    without = [getattr(r, figure) for r in results["plain"]]
    pairs = [a / b for a, b in zip(with_plugin, without, strict=True)]
    itself = [abs(b / a - 1) for a, b in pairwise(without)]
    return {
        "median": statistics.median(pairs), "min": min(pairs), "max": max(pairs),
        "noise": statistics.median(itself) if itself else float("nan"),
    }  # fmt: skip


def main() -> None:
    """Run the benchmark and print its ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, help="folder of a model; default the demo model")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=8, help="in flight at once")
    parser.add_argument("--clients", type=int, default=1, help="processes that send them")
    parser.add_argument("--prompt-tokens", type=int, default=128)
    parser.add_argument("--output-tokens", type=int, default=32)
    parser.add_argument("--json", type=Path)
    parser.add_argument("flags", nargs="*", help="flags for both vLLM servers, after --")
    options = parser.parse_args()
    model = options.model
    if model is None:
        from pdd_cli.demo_model import prepare

        model = prepare().vllm_dir
    with ExitStack() as stack:
        urls = {}
        for name in ("plugin", "plain"):
            server = CloudServer(model, served_name="m", api_key=KEY, extra_args=options.flags)
            print(f"starting {name} vLLM ...", flush=True)
            urls[name] = stack.enter_context(server if name == "plugin" else plain(server)).base_url
        pool = stack.enter_context(ProcessPoolExecutor(options.clients))
        results = measure(
            pool, urls, options.rounds, clients=options.clients, requests=options.requests,
            prompt_tokens=options.prompt_tokens, output_tokens=options.output_tokens,
        )  # fmt: skip
    ratios = {figure: ratio(results, figure) for figure in ("tokens_per_s", "ttft_ms")}
    for figure, r in ratios.items():
        print(f"{figure}: plugin / plain = {r['median']:.3f} ({r['min']:.3f} to {r['max']:.3f})")
        print(f"{figure}: plain / plain  = 1 +- {r['noise']:.3f}, the noise")
    if options.json:
        rounds = {name: [asdict(r) for r in of] for name, of in results.items()}
        options.json.write_text(json.dumps({"ratios": ratios, "rounds": rounds, "argv": sys.argv[1:]}, indent=1))


if __name__ == "__main__":
    main()
