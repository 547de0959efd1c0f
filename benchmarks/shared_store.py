"""What the shared store costs: the event loop per ended state, and the time between two tokens.

    python benchmarks/shared_store.py [--store URL] [--json FILE]
    python benchmarks/shared_store.py --url WITH_STORE WITHOUT_STORE [--model NAME] [--json FILE]

Without `--store`, a `valkey-server` or `redis-server` from PATH is started on a socket. The first form drives the
plugin's recorder with streams that make a token every 20 ms. The second one sends requests to two running vLLMs,
with the key in VLLM_API_KEY. In both, rounds with and without the store take turns: A B B A A B ...
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from array import array
from pathlib import Path
from types import ModuleType, SimpleNamespace

import openai
from prometheus_client import CollectorRegistry

from pdd_core.optin import parse_opt_in
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.generate_recorder import GenerateRecorder
from pdd_vllm_plugin.handoff_record import HandoffRecord
from pdd_vllm_plugin.handoff_service import HandoffService
from pdd_vllm_plugin.handoff_store import HandoffStore
from pdd_vllm_plugin.metrics import CloudMetrics
from pdd_vllm_plugin.shared_store.shared_store import SharedStore

STREAMS, TOKENS, STEP_S = 32, 16, 0.02


class Cloud:
    """The plugin without an engine; with the shared store if there is a URL."""

    def __init__(self, url: str | None) -> None:
        self.registry = CollectorRegistry()
        self.service = HandoffService(CloudMetrics(self.registry))
        self.service.config = PDDConfig(store=url, max_handoffs=100_000)
        self.service.store = HandoffStore(self.service.config)
        self.shared = SharedStore(self.service) if url else None
        self.engine = SimpleNamespace(generate=self._generate)
        self.recorder = GenerateRecorder(
            self.engine, self.service.store, model="m", tokenizer="t", metrics=self.service.metrics
        )

    async def _generate(self, prompt, params, request_id):
        for number in range(TOKENS):
            await asyncio.sleep(STEP_S)
            last = "length" if number == TOKENS - 1 else None
            one = SimpleNamespace(
                index=0, token_ids=[number], text=" word", logprobs=None, finish_reason=last, stop_reason=None
            )
            yield SimpleNamespace(
                outputs=[one], prompt_token_ids=None, kv_transfer_params=None, finished=bool(last)
            )

    async def ready(self) -> None:
        while self.shared is not None and not self.registry.get_sample_value("pdd_store_up"):
            await asyncio.sleep(0.01)

    def stored(self) -> float:
        return self.registry.get_sample_value("pdd_store_states_total", {"outcome": "stored"}) or 0.0

    async def gaps(self, prompt_tokens: int, seconds: float) -> list[float]:
        """Seconds between two tokens of all streams."""
        until, found = time.perf_counter() + seconds, []

        async def client() -> None:
            while time.perf_counter() < until:
                name = uuid.uuid4().hex
                params = SimpleNamespace(
                    extra_args={"pdd_handoff": name},
                    n=1,
                    output_kind=SimpleNamespace(name="DELTA"),
                    max_tokens=TOKENS,
                )
                prompt = {"prompt_token_ids": list(range(prompt_tokens))}
                before = None
                async for _ in self.recorder.generate(prompt, params, f"cmpl-{name}"):
                    now = time.perf_counter()
                    if before is not None:
                        found.append(now - before)
                    before = now

        await asyncio.gather(*(client() for _ in range(STREAMS)))
        return found


def ended_record(prompt_tokens: int) -> HandoffRecord:
    name = uuid.uuid4().hex
    return HandoffRecord(
        opt_in=parse_opt_in({"pdd_handoff": name}), completion_id=f"cmpl-{name}", engine_request_id=name,
        model="m", tokenizer="t", sampling_params={"max_tokens": 64}, created=time.time(),
        touched=time.monotonic(), started=True, prompt_token_ids=array("I", range(prompt_tokens)),
        output_token_ids=array("I", range(64)), text=[" word"] * 64,
    )  # fmt: skip


async def loop_cost(url: str, prompt_tokens: int, states: int) -> dict:
    """Microseconds that one ended state takes of the loop, and how the states are written behind it."""
    cost, stalls = {}, {}
    for name, one in (("without", Cloud(None)), ("with", Cloud(url))):
        await one.ready()
        took, late, store = [], [], one.service.store
        begun = time.perf_counter()
        for _ in range(states):
            record = ended_record(prompt_tokens)
            store.add(record)
            record.end("length")
            at = time.perf_counter()
            store.note(record)
            took.append(time.perf_counter() - at)
            at = time.perf_counter()
            await asyncio.sleep(0.005)
            late.append(time.perf_counter() - at - 0.005)
        cost[name], stalls[name] = statistics.median(took) * 1e6, sorted(late)[int(0.99 * len(late))] * 1e3
        while one.shared is not None and one.stored() < states and time.perf_counter() < begun + 60:
            await asyncio.sleep(0.005)
        if one.shared is not None:
            assert one.stored() == states, f"{one.stored()} of {states} states were stored"
            one.shared.stop()
    return {
        "prompt_tokens": prompt_tokens,
        "note_us": round(cost["without"], 1), "note_us_with": round(cost["with"], 1),
        "loop_late_p99_ms": round(stalls["without"], 2), "loop_late_p99_ms_with": round(stalls["with"], 2),
    }  # fmt: skip


async def vllm_gaps(url: str, model: str, seconds: float) -> list[float]:
    """Seconds between two chunks of opted-in requests to a vLLM."""
    until, found = time.perf_counter() + seconds, []

    async def ask() -> None:
        while time.perf_counter() < until:
            name, before = uuid.uuid4().hex, None
            stream = await client.completions.create(
                model=model, prompt=f"{name}: once upon a time", max_tokens=TOKENS, temperature=0, stream=True,
                extra_body={"vllm_xargs": {"pdd_handoff": name}, "ignore_eos": True},
            )  # fmt: skip
            async for _ in stream:
                now = time.perf_counter()
                if before is not None:
                    found.append(now - before)
                before = now

    async with openai.AsyncOpenAI(base_url=url, api_key=os.environ.get("VLLM_API_KEY", "none")) as client:
        await asyncio.gather(*(ask() for _ in range(4)))
    return found


def share(values: list[float], part: float) -> float:
    return round(sorted(values)[int(part * len(values))] * 1e3, 3)


async def side_by_side(one, other, rounds: int) -> dict:
    """Milliseconds between two tokens, with and without the store."""
    found = {"with": [], "without": []}
    per_round = []
    for number in range(rounds):
        order = [("with", one), ("without", other)]
        p99 = {}
        for name, measure in order if number % 2 == 0 else reversed(order):
            gaps = await measure()
            p99[name] = share(gaps, 0.99)
            found[name] += gaps
        per_round.append(p99["with"] / p99["without"])
    return {
        **{f"p50_ms_{name}": share(gaps, 0.5) for name, gaps in found.items()},
        **{f"p99_ms_{name}": share(gaps, 0.99) for name, gaps in found.items()},
        "p99_ratio_by_round": [round(ratio, 3) for ratio in per_round],
        "p99_ratio_median": round(statistics.median(per_round), 3),
        "tokens": sum(map(len, found.values())),
    }


async def fake(url: str, args: argparse.Namespace) -> list[dict]:
    rows = [await loop_cost(url, tokens, states) for tokens, states in ((256, 1000), (8_192, 300), (100_000, 60))]
    for tokens in (256, 8_192):
        with_store, without = Cloud(url), Cloud(None)
        await with_store.ready()
        gaps = await side_by_side(
            lambda one=with_store, n=tokens: one.gaps(n, args.seconds),
            lambda one=without, n=tokens: one.gaps(n, args.seconds),
            args.rounds,
        )
        rows.append({"streams": STREAMS, "prompt_tokens": tokens, **gaps, "stored": with_store.stored()})
        with_store.shared.stop()
    return rows


async def real(args: argparse.Namespace) -> list[dict]:
    one, other = args.url
    for url in args.url:
        await vllm_gaps(url, args.model, 5.0)  # warm
    measures = [lambda url=url: vllm_gaps(url, args.model, args.seconds) for url in (one, other)]
    return [await side_by_side(*measures, args.rounds)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--store", help="URL of a Valkey or Redis; its states of this benchmark expire in ten minutes"
    )
    parser.add_argument("--url", nargs=2, help="base URLs of a vLLM with the store, and of one without")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    if args.url:
        rows = asyncio.run(real(args))
    else:
        if "vllm" not in sys.modules:  # the recorder takes one exception of it, which is not raised here
            sys.modules["vllm"], sys.modules["vllm.exceptions"] = ModuleType("vllm"), ModuleType("vllm.exceptions")
        with tempfile.TemporaryDirectory() as folder:
            server, url = None, args.store
            if url is None:
                binary = shutil.which("valkey-server") or shutil.which("redis-server")
                if binary is None:
                    parser.error("there is no valkey-server or redis-server on PATH: name one with --store")
                path, url = Path(folder, "s"), f"unix://{folder}/s"
                server = subprocess.Popen(
                    [binary, "--port", "0", "--unixsocket", path, "--save", "", "--logfile", Path(folder, "log")]
                )
                while not path.exists():
                    time.sleep(0.01)
            try:
                rows = asyncio.run(fake(url, args))
            finally:
                if server is not None:
                    server.kill()
                    server.wait()
    for row in rows:
        print(json.dumps(row))
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
