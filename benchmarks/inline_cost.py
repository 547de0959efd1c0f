"""What `pdd_inline` costs the event loop of vLLM's API server: per streamed chunk, and for a long refined prompt.

The middleware's `send` is driven with chunks as vLLM makes them, with and without the field. No engine runs. Times
are the thread's own, so that other work on the machine does not count. All other streams wait for the longest turn
of the loop while the refined prompt is sent.

    python benchmarks/inline_cost.py [--chunks 200000] [--kept 100000] [--rounds 7]
"""

import argparse
import asyncio
import json
import statistics
import time

from pdd_core.handoff import DecodeBudget, Refinement
from pdd_core.optin import OptIn
from pdd_vllm_plugin.handoff_record import NOT_REQUESTED, PENDING, HandoffRecord
from pdd_vllm_plugin.inline_updates import InlineUpdates, follow

PATH = "/v1/chat/completions"
START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}
CHUNK = {
    "id": "chatcmpl-" + "c" * 32, "object": "chat.completion.chunk", "created": 1764000000, "model": "m",
    "choices": [{"index": 0, "delta": {"content": " word"}, "finish_reason": None, "token_ids": [7]}],
}  # fmt: skip
BODY = {"type": "http.response.body", "body": b"data: %s\n\n" % json.dumps(CHUNK).encode(), "more_body": True}


async def drop(message):
    """Stand for the socket."""


def begun(*, ratio=None, refinement=NOT_REQUESTED):
    """Return the record of a request whose budget is known."""
    opt_in = OptIn("a" * 32, refine_ratio=ratio, inline=True)
    record = HandoffRecord(opt_in, "c", "e", "m", "t", {}, 0.0, 0.0, refinement=refinement)
    record.decode_budget = DecodeBudget(tokens=64, set_by="client")
    return record


async def per_chunk(send, chunks):
    """Return the seconds that one chunk takes, begin of the stream aside."""
    await send(START)
    await send(BODY)
    start = time.thread_time()
    for _ in range(chunks):
        await send(BODY)
    return (time.thread_time() - start) / chunks


async def longest_turn(kept):
    """Return the longest turn of the loop, in seconds, while a refined prompt of `kept` tokens is sent.

    And how long it takes to make its JSON at once.
    """
    ids = list(range(kept))
    record = begun(ratio=0.5, refinement=PENDING)
    sent = asyncio.Event()
    turns = []

    async def send(message):
        if message.get("body", b"").endswith(b"}}\n\n"):
            sent.set()

    updates = InlineUpdates(send, PATH, hold_s=10.0)
    with updates.active():
        follow(record)
        await updates(START)
        await updates(BODY)
        refinement = Refinement(
            method="attention", ratio=0.5, kept_indices=ids, kept_token_ids=ids, protected=[], window=16, layers=[]
        )
        sent.clear()  # the budget's update
        record.refined_as(refinement)
        while not sent.is_set():
            start = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - start)
    start = time.thread_time()
    refinement.model_dump_json()
    return max(turns), time.thread_time() - start


async def main():
    """Run the benchmark and print its figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, default=200_000)
    parser.add_argument("--kept", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    costs = []
    for _ in range(options.rounds):
        updates = InlineUpdates(drop, PATH, hold_s=1.0)
        with updates.active():
            follow(begun())
            inline = await per_chunk(updates, options.chunks)
        costs.append((inline - await per_chunk(drop, options.chunks)) * 1e6)
    print(
        f"a chunk: {statistics.median(costs):.2f} us more with pdd_inline ({min(costs):.2f} to {max(costs):.2f})"
    )
    turns = [await longest_turn(options.kept) for _ in range(options.rounds)]
    ours, at_once = (statistics.median(of) * 1e3 for of in zip(*turns, strict=True))
    print(
        f"{options.kept} kept tokens: longest turn of the loop {ours:.2f} ms; made JSON at once {at_once:.2f} ms"
    )


if __name__ == "__main__":
    asyncio.run(main())
