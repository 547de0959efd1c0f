"""Budgets, state and cancel on a GPU, where vLLM schedules a step before the last one's tokens are known.

Weights may be random (``--load-format dummy``): what is checked is counts and equality of ids, not text. Prints
one JSON line per check and ends with an error if one fails.

    python benchmarks/async_scheduling.py --model FOLDER [--json FILE] [-- FLAGS OF VLLM ...]
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from pathlib import Path
from uuid import uuid4

import openai

from pdd_cli.launcher import CloudServer

KEY = "bench-key"
FACTS = []


def say(check, *, ok, **facts):
    """Print one check's result and keep it."""
    FACTS.append({"check": check, "ok": bool(ok), **facts})
    print(json.dumps(FACTS[-1]), flush=True)


class Client:
    """Opted-in greedy streams of random prompts."""

    def __init__(self, base_url):
        self.openai = openai.AsyncOpenAI(base_url=base_url, api_key=KEY, max_retries=0, timeout=300)

    async def stream(self, *, seed, length=512, budget=None, max_tokens=40, handoff_id=None, on_chunk=None):
        """Return (ids, finish_reason, stop_reason)."""
        xargs = {"pdd_handoff": handoff_id or uuid4().hex, **({"pdd_decode_budget": budget} if budget else {})}
        stream = await self.openai.completions.create(
            model="m", prompt=[1000 + (seed * 7919 + i * 31) % 90000 for i in range(length)],
            max_tokens=max_tokens, temperature=0, stream=True,
            extra_body={"ignore_eos": True, "return_token_ids": True, "vllm_xargs": xargs},
        )  # fmt: skip
        ids, end = [], (None, None)
        async for chunk in stream:
            for choice in chunk.choices:
                ids += choice.token_ids or []
                end = (choice.finish_reason, choice.stop_reason)
                if on_chunk is not None:
                    await on_chunk(ids)
        return (ids, *end)

    async def state(self, handoff_id):
        """Return the handoff state."""
        return await self.openai.get(f"/pdd/handoffs/{handoff_id}", cast_to=object)

    async def known(self, handoff_id, request):
        """Wait until the server has begun the request: a DELETE before that is answered with a 404."""
        while True:
            try:
                return await self.state(handoff_id)
            except openai.NotFoundError:
                await asyncio.sleep(0.005)
            if request.done():
                await request  # it was refused, and says why

    async def delete(self, handoff_id):
        """Return the answer to DELETE and its milliseconds."""
        begun = time.perf_counter()
        answer = await self.openai.delete(f"/pdd/handoffs/{handoff_id}", cast_to=object)
        return answer, (time.perf_counter() - begun) * 1000


async def check_budgets(client):
    whole, *_ = await client.stream(seed=1, budget=1000, max_tokens=40)
    alone = [(b, await client.stream(seed=1, budget=b)) for b in range(1, 41)]
    wrong = [b for b, answer in alone if answer != (whole[:b], "length", "pdd_handoff" if b < 40 else None)]
    say("budgets 1..40 are exact", ok=not wrong, wrong=wrong)
    budgets = [1 + i % 39 for i in range(64)]
    together = await asyncio.gather(*[client.stream(seed=100 + i, budget=b) for i, b in enumerate(budgets)])
    lengths = [len(ids) for ids, *_ in together]
    ends = {(reason, stop) for _, reason, stop in together}
    say("64 budgets in one batch are exact", ok=lengths == budgets and ends == {("length", "pdd_handoff")})


async def check_state(client):
    snapshots, bad = 0, 0

    async def one(seed):
        nonlocal snapshots, bad
        handoff_id = uuid4().hex

        async def read(ids):
            nonlocal snapshots, bad
            held = list(ids)
            state = await client.state(handoff_id)
            seen.append(state["output_token_ids"])
            snapshots += 1
            bad += state["output_token_ids"][: len(held)] != held

        seen = []
        final, *_ = await client.stream(seed=seed, budget=30, handoff_id=handoff_id, on_chunk=read)
        return all(final[: len(ids)] == ids for ids in seen)

    prefixes = await asyncio.gather(*[one(200 + i) for i in range(8)])
    say(
        "state after each chunk of 8 streams",
        ok=all(prefixes) and not bad and snapshots > 8,
        snapshots=snapshots,
        bad=bad,
    )


async def check_cancel(client):
    extra, waits, confirmed = [], [], []
    for number in range(8):
        handoff_id, at = uuid4().hex, []

        async def cancel(ids, handoff_id=handoff_id, at=at):
            if len(ids) >= 30 and not at:
                at.append(len(ids))
                answer, ms = await client.delete(handoff_id)
                waits.append(ms)
                confirmed.append(answer["confirmed"])

        ids, reason, _ = await client.stream(
            seed=300 + number, budget=4000, max_tokens=4000, handoff_id=handoff_id, on_chunk=cancel
        )
        extra.append(len(ids) - at[0])
        assert reason == "abort"
    say(
        "DELETE in decode",
        ok=all(confirmed),
        tokens_after_the_call=extra,
        median_ms=round(statistics.median(waits), 1),
    )
    waits, lengths = [], []
    for number in range(4):
        handoff_id = uuid4().hex
        task = asyncio.create_task(
            client.stream(seed=400 + number, length=15000, budget=50, handoff_id=handoff_id)
        )
        await client.known(handoff_id, task)
        waits.append((await client.delete(handoff_id))[1])
        lengths.append(len((await task)[0]))
    say("DELETE in prefill", ok=lengths == [0] * 4, lengths=lengths, median_ms=round(statistics.median(waits), 1))


async def run(base_url):
    client = Client(base_url)
    info = await client.openai.get("/pdd/info", cast_to=object)
    say("the plugin is active", ok="decode_budget" in info["features"], engine=info["engine"])
    await check_budgets(client)
    await check_state(client)
    await check_cancel(client)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--log", type=Path)
    parser.add_argument("flags", nargs="*", help="flags for vLLM, after --")
    options = parser.parse_args()
    begun = time.monotonic()
    server = CloudServer(
        options.model, served_name="m", api_key=KEY, extra_args=options.flags, log_path=options.log
    )
    with server:
        print(f"ready after {time.monotonic() - begun:.0f} s", flush=True)
        asyncio.run(run(server.base_url))
    if options.json:
        options.json.write_text(json.dumps(FACTS, indent=1))
    sys.exit(not all(fact["ok"] for fact in FACTS))


if __name__ == "__main__":
    main()
