"""Sends a trace's requests when they are due, whatever the server makes of the ones before: an open loop."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import anyio

from pdd_lab.load.reply import Reply

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_lab.load.measuring_client import LoadClient, ServedModel
    from pdd_lab.load.random_prompts import Prompts
    from pdd_lab.traces import Trace

_LEAD_S = 0.2
"""From the start of the loop to the first request: nothing is late because the loop had to begin."""
_SAY_EVERY_S = 0.5


@dataclass(slots=True)
class Run:
    """What has been sent, and what came of it; grows while the loop runs."""

    begun: float = 0.0
    """Clock time at which the first request is due."""
    replies: list[Reply] = field(default_factory=list)
    """Of all requests that were due so far, in their order."""
    skipped: int = 0
    """Requests that the server cannot serve: too long for its context. They are not sent."""

    def line(self, total: int) -> str:
        """Return how far it is."""
        done = sum(reply.ok for reply in self.replies)
        failed = sum(reply.error is not None for reply in self.replies)
        waiting = sum(reply.sent is None for reply in self.replies)
        under_way = len(self.replies) - done - failed - waiting
        parts = [f"{len(self.replies) + self.skipped} of {total} due", f"{under_way} running", f"{done} done"]
        parts += [f"{waiting} waiting for a connection"] if waiting else []
        parts += [f"{failed} failed"] if failed else []
        return ", ".join(parts)


async def replay_live(
    trace: Trace,
    client: LoadClient,
    served: ServedModel,
    prompts: Prompts,
    run: Run,
    *,
    concurrency: int,
    say: Callable[[str], object],
) -> None:
    """Send all requests of `trace` to `client`, each when it is due, and return when every one has ended.

    What comes is in `run`, also when the call is cancelled, which stops every request.

    Args:
        trace: already at the speed at which it is to be replayed.
        client: probed.
        served: what the server said of itself.
        prompts: makes the prompts.
        run: written to.
        concurrency: most requests at a time; one that has to wait for its turn is late, and counted from when it
            was due.
        say: told now and then how far it is.
    """
    turns = anyio.CapacityLimiter(concurrency)
    run.begun = time.monotonic() + _LEAD_S

    async def one(reply: Reply, max_tokens: int) -> None:
        async with turns:
            await client.ask(reply, prompts.of_request(trace, reply.index), max_tokens=max_tokens)

    async def tell() -> None:
        while True:
            say(run.line(len(trace)))
            await anyio.sleep(_SAY_EVERY_S)

    async with anyio.create_task_group() as telling:
        telling.start_soon(tell)
        async with anyio.create_task_group() as tasks:
            for index in range(len(trace)):
                due = run.begun + float(trace.arrival_s[index])
                await anyio.sleep(max(0.0, due - time.monotonic()))
                length, answer = int(trace.prompt_tokens[index]), int(trace.output_tokens[index])
                if not served.holds(length + answer):
                    run.skipped += 1
                    continue
                reply = Reply(index=index, due=due, prompt_tokens=length)
                run.replies.append(reply)
                tasks.start_soon(one, reply, answer)
        telling.cancel_scope.cancel()
