"""Measures a cloud from outside: round trips, prompts one by one, answers side by side."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass, field
from itertools import count
from typing import TYPE_CHECKING

import anyio
import numpy as np

from pdd_core.errors import CloudLost, CloudRefused
from pdd_lab.load.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pdd_lab.bench.cloud_plan import CloudPlan
    from pdd_lab.load.measuring_client import LoadClient
    from pdd_lab.load.random_prompts import Prompts

LEAST_GAPS = 4
"""Fewer gaps in which all answers were under way are no measurement."""


@dataclass(frozen=True, slots=True)
class Prefill:
    """One prompt on an idle server."""

    length: int
    seconds: float
    """From sending it to its first token."""


@dataclass(frozen=True, slots=True)
class Decode:
    """Answers side by side: the gaps while all of them were under way."""

    width: int
    """Answers at a time."""
    prompt_tokens: int
    """Of each."""
    context_tokens: float
    """Tokens that all of them held, in the mean."""
    tpot_s: float
    """Median gap."""


@dataclass(slots=True)
class CloudMeasured:
    """All that was measured so far."""

    round_trips: list[float] = field(default_factory=list)
    prefill: list[Prefill] = field(default_factory=list)
    decode: list[Decode] = field(default_factory=list)
    unusable: int = 0
    """Groups of answers that ran side by side too shortly."""

    @property
    def rtt_s(self) -> float:
        """Median round trip."""
        return statistics.median(self.round_trips)

    @property
    def jitter_s(self) -> float:
        """Robust standard deviation of the round trip: 1.4826 times the median distance from the median."""
        middle = self.rtt_s
        return 1.4826 * statistics.median(abs(one - middle) for one in self.round_trips)


async def measure(
    client: LoadClient, plan: CloudPlan, prompts: Prompts, into: CloudMeasured, *, say: Callable[[str], object]
) -> None:
    """Carry out `plan`, and write into `into` what comes. Cancelling it stops every request.

    Raises:
        CloudUnreachable, CloudRefused, CloudLost: a request failed.
    """
    say("round trips")
    await client.round_trip()  # opens the connection
    for _ in range(plan.round_trips):
        into.round_trips.append(await client.round_trip())
    keys = count(1)
    await _prefilled(
        client, prompts.random(min(plan.lengths), next(keys))
    )  # the first request warms the server up
    for rep in range(plan.reps):
        for length in plan.lengths:
            say(f"repetition {rep + 1} of {plan.reps}: a prompt of {length} tokens")
            into.prefill.append(await _prefilled(client, prompts.random(length, next(keys))))
        for width in plan.widths:
            for context in plan.contexts:
                say(f"repetition {rep + 1} of {plan.reps}: {width} answers at a time, prompts of {context} tokens")
                asked = [prompts.random(context, next(keys)) for _ in range(width)]
                found = together(await _answered(client, asked, plan.answer_tokens))
                if found is None:
                    into.unusable += 1
                else:
                    into.decode.append(found)


async def _prefilled(client: LoadClient, prompt: list[int]) -> Prefill:
    [reply] = await _answered(client, [prompt], 1)
    return Prefill(len(prompt), reply.ttft or 0.0)


async def _answered(client: LoadClient, prompts: list[list[int]], max_tokens: int) -> list[Reply]:
    replies: list[Reply] = []

    async def one(reply: Reply, prompt: list[int]) -> None:
        await client.ask(reply, prompt, max_tokens=max_tokens)

    async with anyio.create_task_group() as tasks:
        for index, prompt in enumerate(prompts):
            reply = Reply(index=index, due=time.monotonic(), prompt_tokens=len(prompt))
            replies.append(reply)
            tasks.start_soon(one, reply, prompt)
    for reply in replies:
        if reply.error is not None:
            kind = CloudRefused if reply.error.startswith("HTTP") else CloudLost
            raise kind(f"a request failed, so there is nothing to measure: {reply.detail}")
        if not reply.token_times:
            raise CloudLost("an answer came without a token")
    return replies


def together(replies: list[Reply]) -> Decode | None:
    """Return what the gaps say while all of `replies` were under way; None if that was too short.

    None as well if most tokens came several at once: then a pause was measured of the network or of this process.
    """
    begin = max(reply.token_times[0] for reply in replies)
    end = min(reply.token_times[-1] for reply in replies)
    gaps = [gap for reply in replies for gap in _gaps(reply, begin, end)]
    if len(gaps) < LEAST_GAPS * len(replies) or not statistics.median(gaps):
        return None
    held = 0.0
    for reply in replies:
        inside = [index for index, at in enumerate(reply.token_times) if begin <= at <= end]
        held += reply.prompt_tokens + float(np.mean(inside)) + 1
    return Decode(len(replies), replies[0].prompt_tokens, held, statistics.median(gaps))


def _gaps(reply: Reply, begin: float, end: float) -> Iterator[float]:
    inside = [at for at in reply.token_times if begin <= at <= end]
    yield from np.diff(inside).tolist()
