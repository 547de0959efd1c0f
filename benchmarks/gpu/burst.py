"""A burst of five times the rate that an engine sustains: fixed decode budgets against the load-dynamic policy.

Both kinds of requests ask one engine for the same budget. Those for the load-dynamic policy also say the least one
with which their user would not wait, so that the plugin may go down to it while the engine is hard pressed.
"""

import asyncio
import math
import random
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
from arrivals import Arrival
from budgets import SHOWN_TPS, planner_budget
from online_engine import Cloud, Served

KINDS = ("fixed", "load")
BURST = 5.0
"""Times the sustainable rate."""


@dataclass(frozen=True, slots=True)
class BurstLoad:
    """What is sent."""

    prompt: int = 128
    output: int = 1024
    budget: int = 512
    base: float = 0.7
    """Of the sustainable rate, before and after the burst."""
    seconds: tuple[float, float, float] = (16.0, 5.0, 18.0)
    """Before, during and after the burst."""
    concurrency: int = 512
    """Requests in flight while the sustainable rate is measured."""
    measuring_s: float = 12.0

    @property
    def least(self) -> int:
        return planner_budget(self.prompt)

    @property
    def duration(self) -> float:
        """Seconds that everything takes."""
        return self.measuring_s + 2 + len(KINDS) * (sum(self.seconds) + 8)


class Burst:
    """Runs both kinds on one engine."""

    def __init__(self, cloud: Cloud, load: BurstLoad) -> None:
        self._cloud = cloud
        self._load = load

    async def run(self) -> dict[str, Any]:
        """Return the figures of both kinds, JSON-ready."""
        load = self._load
        sustainable = await self._sustainable()
        rates = [load.base * sustainable, BURST * sustainable, load.base * sustainable]
        arrivals = poisson(list(zip(rates, load.seconds, strict=True)), load.prompt, load.output)
        runs = {kind: self._figures(await self._serve(arrivals, kind)) for kind in KINDS}
        return {
            "sustainable_per_s": sustainable,
            "prompt": load.prompt,
            "budget": load.budget,
            "least_budget": load.least,
            "seconds": load.seconds,
            **runs,
            "ttft_p99_fixed_over_load": runs["fixed"]["ttft_p99_s"] / runs["load"]["ttft_p99_s"],
        }

    async def _sustainable(self) -> float:
        """Return the requests per second that fixed budgets allow: tokens per second in a full engine, over N."""
        load = self._load
        ends = time.perf_counter() + load.measuring_s
        rows: list[Served] = []

        async def one_after_another(first: int) -> None:
            budget = first
            while time.perf_counter() < ends:
                row = Served(Arrival(0, load.prompt, load.output), budget, due=time.perf_counter())
                rows.append(row)
                await self._cloud.serve(row, self._cloud.prompt(load.prompt), budget=budget)
                budget = load.budget

        # spread over their lives from the beginning, as they would be later
        firsts = [max(1, load.budget * (n + 1) // load.concurrency) for n in range(load.concurrency)]
        tasks = [asyncio.create_task(one_after_another(first)) for first in firsts]
        await asyncio.sleep(load.measuring_s / 2)
        begun, before = time.perf_counter(), sum(row.tokens for row in rows)
        await asyncio.sleep(max(0.0, ends - time.perf_counter()))
        rate = (sum(row.tokens for row in rows) - before) / (time.perf_counter() - begun)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(1.0)
        return rate / load.budget

    async def _serve(self, arrivals: list[Arrival], kind: str) -> list[Served]:
        load = self._load
        least = load.least if kind == "load" else None
        prompts = [self._cloud.prompt(one.prompt) for one in arrivals]
        begun = time.perf_counter() + 0.1
        rows, tasks = [], []
        for one, prompt in zip(arrivals, prompts, strict=True):
            await asyncio.sleep(max(0.0, begun + one.at - time.perf_counter()))
            rows.append(Served(one, min(one.output, load.budget), due=begun + one.at))
            serving = self._cloud.serve(rows[-1], prompt, budget=load.budget, least=least)
            tasks.append(asyncio.create_task(serving))
        await asyncio.wait(tasks, timeout=5.0)
        self._ended = time.perf_counter()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(1.5)
        return rows

    def _figures(self, rows: list[Served]) -> dict[str, Any]:
        load, now = self._load, self._ended
        begins, ends = load.seconds[0], load.seconds[0] + load.seconds[1]
        before = [row for row in rows if begins / 2 <= row.arrival.at < begins]
        hit = [row for row in rows if begins <= row.arrival.at < ends]
        calm = max(2 * quantile([row.ttft(now) for row in before], 99), 0.2)
        slow = [row.arrival.at for row in rows if row.arrival.at >= ends and row.ttft(now) > calm]
        lowered = [
            row.arrival.at for row in rows if row.arrival.at >= ends and row.done and row.tokens < row.asked
        ]
        served = [row for row in rows if row.done]
        return {
            "requests": len(rows),
            "in_burst": len(hit),
            "ttft_p50_s": quantile([row.ttft(now) for row in hit], 50),
            "ttft_p99_s": quantile([row.ttft(now) for row in hit], 99),
            "ttft_p99_before_s": quantile([row.ttft(now) for row in before], 99),
            "ttft_normal_after_s": max(slow, default=ends) - ends,
            "budgets_normal_after_s": max(lowered, default=ends) - ends,
            "never_begun": sum(row.first is None for row in rows),
            "cloud_tokens": sum(row.tokens for row in rows),
            "below_the_least": sum(row.tokens < min(load.least, row.arrival.output) for row in served),
            "slower_than_shown": len(slower := [row for row in served if (row.tpot or 0.0) > 1 / SHOWN_TPS]),
            "slower": [_slow(row) for row in slower],
        }


def _slow(row: Served) -> dict[str, float]:
    """Return an answer whose tokens came slower than they are shown: when, how many, and how slowly."""
    mean = row.tpot or 0.0
    return {
        "at_s": round(row.arrival.at, 2),
        "tokens": row.tokens,
        "mean_gap_ms": round(1000 * mean, 1),
        "last_late_ms": round(1000 * (row.tokens - 1) * (mean - 1 / SHOWN_TPS), 1),
    }


def poisson(phases: list[tuple[float, float]], prompt: int, output: int) -> list[Arrival]:
    """Return arrivals at random, at the given (requests per second, seconds)."""
    draw, arrivals, begins = random.Random(0), [], 0.0
    for rate, seconds in phases:
        at = draw.expovariate(rate)
        while at < seconds:
            arrivals.append(Arrival(begins + at, prompt, output))
            at += draw.expovariate(rate)
        begins += seconds
    return arrivals


def quantile(values: list[float], percent: float, *, of_none: float = math.nan) -> float:
    """Return the smallest value that so many percent do not exceed; `of_none` where there is no value."""
    return float(np.percentile(values, percent, method="higher")) if values else of_none
