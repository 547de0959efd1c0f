"""The clients of the burst benchmark: open-loop, from several processes, a computed device behind each request."""

import asyncio
import random
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field
from uuid import uuid4

import openai

from pdd_core.break_even import break_even_budget

KEY = "bench-key"


@dataclass(frozen=True, slots=True)
class Case:
    """What is asked of the server, and the device that would take over."""

    prompt_tokens: int
    budget: int
    rate: float
    """Tokens per second that the user is shown."""
    prefill_tps: float
    """Of the device."""
    max_num_seqs: int
    max_tokens: int = 256

    @property
    def least(self) -> int:
        """The budget at which the device is ready just when the cloud's last token is shown."""
        least = break_even_budget(self.prompt_tokens, rate=self.rate, prefill_tps=self.prefill_tps, headroom=1.0)
        assert least is not None
        return min(least, self.budget)


@dataclass(frozen=True, slots=True)
class Sent:
    """One request, in seconds since the run began and, its tokens, since it was sent."""

    at: float
    tokens_at: list[float] = field(repr=False)
    budget_ended_it: bool
    """Else the device took over first."""

    @property
    def ttft(self) -> float:
        """Seconds to the first token."""
        return self.tokens_at[0]

    @property
    def ended(self) -> float:
        """When its last token came, on the run's clock."""
        return self.at + self.tokens_at[-1]


class Device:
    """Processes the prompt from the moment of sending, then each token received."""

    def __init__(self, case: Case) -> None:
        self._seconds = 1 / case.prefill_tps
        self.at = case.prompt_tokens * self._seconds
        """When there is nothing left to process, seconds since the sending."""

    def receive(self, at: float) -> None:
        """Take in one token of the cloud's."""
        self.at = max(self.at, at) + self._seconds


@dataclass(frozen=True, slots=True)
class Job:
    """What one process sends."""

    base_url: str
    arrivals: list[float]
    """Seconds after `begin`."""
    begin: float
    """Unix time."""
    case: Case
    kind: str
    seed: int
    at_once: int
    """Requests in flight at most: then one waits here, and its time has not begun."""
    cancel: bool


async def send(job: Job) -> list[Sent]:
    """Send requests, and return what came of each."""
    draw, case, places = random.Random(job.seed), job.case, asyncio.Semaphore(job.at_once)
    xargs = {"pdd_decode_budget": case.budget, **({"pdd_least_budget": case.least} if job.kind == "load" else {})}

    async def one(at: float) -> Sent:
        prompt = [draw.randrange(100, 40000) for _ in range(case.prompt_tokens)]
        await asyncio.sleep(job.begin + at - time.time())
        async with places:
            return await stream(uuid4().hex, prompt, time.time())

    async def stream(handoff_id: str, prompt: list[int], sent: float) -> Sent:
        device, tokens_at, stop = Device(case), [], None
        chunks = await client.completions.create(
            model="m", prompt=prompt, max_tokens=case.max_tokens, temperature=0, stream=True,
            extra_body={
                "ignore_eos": True, "return_token_ids": True, "vllm_xargs": {"pdd_handoff": handoff_id, **xargs},
            },
        )  # fmt: skip
        taking_over = None
        async for chunk in chunks:
            for choice in chunk.choices:
                stop = choice.stop_reason
                if taking_over is not None and taking_over.done():
                    continue  # in vain
                for _ in choice.token_ids or ():
                    tokens_at.append(time.time() - sent)
                    device.receive(tokens_at[-1])
            if job.cancel and tokens_at and taking_over is None:
                taking_over = asyncio.create_task(caught_up(device, sent))
                taking_over.add_done_callback(lambda task: task.cancelled() or deleting.append(delete(handoff_id)))
        if taking_over is not None:
            taking_over.cancel()
        return Sent(sent - job.begin, tokens_at, stop == "pdd_handoff")

    async def caught_up(device: Device, sent: float) -> None:
        while (left := sent + device.at - time.time()) > 0:
            await asyncio.sleep(left)

    def delete(handoff_id: str) -> asyncio.Task[object]:
        return asyncio.create_task(client.delete(f"/pdd/handoffs/{handoff_id}", cast_to=object))

    deleting: list[asyncio.Task[object]] = []
    async with openai.AsyncOpenAI(base_url=job.base_url, api_key=KEY, max_retries=0, timeout=600) as client:
        sent = list(await asyncio.gather(*map(one, job.arrivals)))
        await asyncio.gather(*deleting)
        return sent


def _send(job: Job) -> list[Sent]:
    return asyncio.run(send(job))


class Load:
    """Sends from several processes: one Python client is slower than a GPU."""

    def __init__(self, pool: Executor, clients: int, base_url: str, *, cancel: bool) -> None:
        self._pool, self._clients, self._base_url, self._cancel = pool, clients, base_url, cancel

    def run(
        self, arrivals: list[float], case: Case, kind: str, *, seed: int, at_once: int = 1_000_000
    ) -> list[Sent]:
        """Return all requests in the order of their arrival, once all have ended."""
        begin, share = time.time() + 1.0, -(-at_once // self._clients)
        jobs = [
            Job(
                self._base_url, arrivals[client :: self._clients], begin, case, kind, seed * 1000 + client, share,
                self._cancel,
            )
            for client in range(self._clients)
        ]  # fmt: skip
        return sorted((one for part in self._pool.map(_send, jobs) for one in part), key=lambda one: one.at)


def poisson(draw: random.Random, rate: float, begin: float, end: float) -> list[float]:
    """Return arrival times of a Poisson process."""
    times, now = [], begin + draw.expovariate(rate)
    while now < end:
        times.append(now)
        now += draw.expovariate(rate)
    return times
