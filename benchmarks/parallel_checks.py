"""What parallel.py asks of each deployment: a client, and the checks, each with its result as text."""

import asyncio
import contextlib
import statistics
import time
from dataclasses import dataclass
from uuid import uuid4

import openai

KEY = "bench-key"
STEP_S = 1.0
"""Longer than any step: what an engine still makes after a DELETE is counted by then."""


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is asked of each deployment."""

    prompt: int = 512
    refined_prompt: int = 2000
    long_prompt: int = 15000
    long_answer: int = 4000


ON_CPU = Amounts(prompt=64, refined_prompt=300, long_prompt=1500, long_answer=600)


def generated(metrics):
    """Tokens that all engines have made: the sum over ``vllm:generation_tokens_total``."""
    lines = [line for line in metrics.splitlines() if line.startswith("vllm:generation_tokens_total")]
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


class Client:
    """Opted-in greedy streams of random prompts, and questions over pooled or new connections."""

    def __init__(self, base_url, amounts):
        self._base_url, self._root, self.amounts = base_url, base_url.removesuffix("/v1"), amounts
        self.pooled = self._made()

    def _made(self):
        return openai.AsyncOpenAI(base_url=self._base_url, api_key=KEY, max_retries=0, timeout=600)

    async def ask(self, method, path, *, new=False):
        """GET or DELETE `path`; `new` opens a connection for it, which may reach another API server."""
        client = self._made() if new else self.pooled
        try:
            return await getattr(client, method)(path, cast_to=object)
        finally:
            if new:
                await client.close()

    async def generated(self):
        async with openai.AsyncOpenAI(base_url=self._root, api_key=KEY) as client:
            return generated(await client.get("/metrics", cast_to=str))

    async def stream(
        self, *, seed, length=None, budget, max_tokens=None, handoff_id=None, on_chunk=None, rank=None, new=False,
        **fields,
    ):  # fmt: skip
        """Return (ids, finish_reason, stop_reason)."""
        xargs = {"pdd_handoff": handoff_id or uuid4().hex, "pdd_decode_budget": budget, **fields}
        client = self._made() if new else self.pooled
        length = length or self.amounts.prompt
        try:
            stream = await client.completions.create(
                model="m", prompt=[100 + (seed * 7919 + i * 31) % 30000 for i in range(length)],
                max_tokens=max_tokens or budget + 1, temperature=0, stream=True,
                extra_headers={} if rank is None else {"X-data-parallel-rank": str(rank)},
                extra_body={"ignore_eos": True, "return_token_ids": True, "vllm_xargs": xargs},
            )  # fmt: skip
            ids, end = [], (None, None)
            async for chunk in stream:
                for choice in chunk.choices:
                    ids += choice.token_ids or []
                    end = (choice.finish_reason, choice.stop_reason)
                    if on_chunk is not None and ids:
                        await on_chunk(ids, chunk.id)
            return (ids, *end)
        finally:
            if new:
                await client.close()

    async def deleted_after(self, tokens, *, seed, new=False, rank=None):
        """Delete a long answer when it has `tokens`; return (confirmed, milliseconds, tokens received)."""
        handoff_id, said = uuid4().hex, []

        async def delete(ids, _):
            if len(ids) >= tokens and not said:
                begun = time.perf_counter()
                said.append(False)
                answer = await self.ask("delete", f"/pdd/handoffs/{handoff_id}", new=new)
                said[:] = [answer["confirmed"], (time.perf_counter() - begun) * 1000]

        long = self.amounts.long_answer
        with contextlib.suppress(openai.NotFoundError):
            ids, *_ = await self.stream(
                seed=seed, budget=long, handoff_id=handoff_id, on_chunk=delete, rank=rank, max_tokens=long
            )
            return (*said, len(ids))
        return False, 0.0, tokens


async def check_budgets(client, _):
    budgets = [1 + i % 39 for i in range(64)]
    answers = await asyncio.gather(*[client.stream(seed=i, budget=b) for i, b in enumerate(budgets)])
    right = [
        (len(ids), *end) == (b, "length", "pdd_handoff") for (ids, *end), b in zip(answers, budgets, strict=True)
    ]
    return all(right), f"{sum(right)}/64"


async def check_state(client, _):
    snapshots = faults = 0

    async def one(seed):
        nonlocal snapshots, faults
        handoff_id, seen = uuid4().hex, []

        async def read(ids, _):
            nonlocal snapshots, faults
            held = list(ids)
            state = await client.ask("get", f"/pdd/handoffs/{handoff_id}")
            seen.append(state["output_token_ids"])
            snapshots += 1
            faults += seen[-1][: len(held)] != held

        final, *_ = await client.stream(seed=seed, budget=30, handoff_id=handoff_id, on_chunk=read)
        faults += sum(final[: len(ids)] != ids for ids in seen)

    await asyncio.gather(*[one(200 + i) for i in range(8)])
    return not faults and snapshots >= 8 * 8, f"{snapshots - faults}/{snapshots}"


async def check_reads(client, _):
    found = asked = 0

    async def one(seed):
        nonlocal found, asked
        handoff_id, completion = uuid4().hex, []

        async def read(new):
            nonlocal found, asked
            for path in (f"/pdd/handoffs/{handoff_id}", f"/chat/completions/{completion[0]}"):
                asked += 1
                with contextlib.suppress(openai.NotFoundError):
                    await client.ask("get", path, new=new)
                    found += 1

        async def on_chunk(ids, completion_id):
            completion[:] = [completion_id]
            if len(ids) in {2, 9, 16, 23}:
                await read(new=len(ids) % 2 == 0)

        await client.stream(seed=seed, budget=24, handoff_id=handoff_id, on_chunk=on_chunk)
        for new in (True, False, True, False, True, False):
            await read(new)

    await asyncio.gather(*[one(300 + i) for i in range(12)])
    return found == asked >= 200, f"{found}/{asked}"


async def check_duplicates(client, _):
    refused = 0

    async def one(seed):
        handoff_id, tried, long = uuid4().hex, False, client.amounts.long_answer

        async def again(*_):
            nonlocal refused, tried
            if tried:
                return
            tried = True
            for new in (True, False, True):
                try:
                    await client.stream(seed=seed, budget=2, handoff_id=handoff_id, new=new)
                except openai.BadRequestError:
                    refused += 1
            await client.ask("delete", f"/pdd/handoffs/{handoff_id}")

        # long: it is to run still when the others come
        await client.stream(seed=seed, budget=long, max_tokens=long, handoff_id=handoff_id, on_chunk=again)

    await asyncio.gather(*[one(400 + i) for i in range(8)])
    return refused == 24, f"{refused}/24"


async def _resting(client):
    """Wait until no engine makes anything: a check before may have failed in the middle."""
    made = -1
    while made != (made := await client.generated()):
        await asyncio.sleep(STEP_S)


async def check_cancels(client, _):
    confirmed = false = 0
    await _resting(client)
    for group in range(6):
        ended = await asyncio.gather(
            *[client.deleted_after(5, seed=500 + group * 8 + i, new=i % 2 == 0) for i in range(8)]
        )
        confirmed += sum(one[0] for one in ended)
        await asyncio.sleep(STEP_S)
        made = await client.generated()
        await asyncio.sleep(STEP_S)
        false += await client.generated() != made
    return confirmed == 48 and not false, f"{confirmed}/48, {false} false"


async def check_refined(client, _):
    ids = [uuid4().hex for _ in range(64)]
    length = client.amounts.refined_prompt
    asks = [
        client.stream(seed=600 + i, length=length, budget=8, handoff_id=one, pdd_refine_ratio=0.5)
        for i, one in enumerate(ids)
    ]
    await asyncio.gather(*asks)
    states = await asyncio.gather(*[client.ask("get", f"/pdd/handoffs/{one}") for one in ids])
    refined = [state["refinement"]["kind"] == "refined" for state in states]
    whole = sum(map(bool, refined))
    why = {state["refinement"].get("message") for state in states} - {None}
    return whole == 64, f"{whole}/64" + (f" {sorted(why)}" if why else "")


async def _latency(client, rank):
    ended = [await client.deleted_after(5, seed=700 + i, rank=rank) for i in range(8)]
    waits = [ms for _, ms, _ in ended]
    text = f"{statistics.median(waits):.1f} (max {max(waits):.1f})"
    return all(one[0] for one in ended), text


async def check_delete_ms(client, _):
    return await _latency(client, None)


async def check_delete_ms_other_prefills(client, other):
    """`other` is where the other engine is reached: a client, with a rank if it is this one."""
    if other is None:
        return True, "-"
    prefiller, rank = other

    async def prefill():
        seed = 10_000
        while True:
            seed += 1
            await prefiller.stream(seed=seed, length=client.amounts.long_prompt, budget=1, rank=rank)

    busy = [asyncio.create_task(prefill()) for _ in range(2)]
    try:
        return await _latency(client, None if rank is None else 0)
    finally:
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)


CHECKS = {
    "budgets": check_budgets,
    "state": check_state,
    "reads": check_reads,
    "duplicates": check_duplicates,
    "cancels": check_cancels,
    "refined": check_refined,
    "delete_ms": check_delete_ms,
    "delete_ms_other_prefills": check_delete_ms_other_prefills,
}
"""Each takes a client, and where the other engine is reached; it returns whether all was right, and figures."""
