"""Tokens per second with prompt lookup and without: code edits, questions about a document, and open chat.

One model, one context. For each prompt both take turns, off on on off ..., from the same processed prompt. Greedy,
or seeded with `--temperature`. Rates are by the process's CPU time, since others may use the machine, and by the
clock.

    python benchmarks/prompt_lookup.py [--gguf FILE] [--rounds 2] [--threads 1] [--tokens 160] [--json FILE]
        [--kinds "code edits" documents "open chat"] [--compare]

`--compare` measures no time. Drafts are made wherever there is one, and all logits are compared with those of
single tokens behind the same text, up to where an answer goes on in another way.
"""

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from itertools import pairwise, takewhile
from pathlib import Path

import numpy as np

from pdd_cli.demo_model import device_gguf
from pdd_llamacpp_adapter import AnswerRequest, DeviceEngine
from pdd_llamacpp_adapter.engine.drafting import LookupDrafter, StepCosts
from pdd_llamacpp_adapter.engine.sampler import Sampler
from pdd_llamacpp_adapter.engine.steps import Choice

REPOSITORY = Path(__file__).parents[1]
N_CTX = 3072
CODE = (
    ("src/pdd_llamacpp_adapter/engine/held_signals.py", "Rename the function held_signals to blocked_signals."),
    ("src/pdd_llamacpp_adapter/engine/engine_queue.py", "Add a comment above each function."),
    ("src/pdd_llamacpp_adapter/engine/abort_flag.py", "Rename the class AbortFlag to StopFlag."),
    ("src/pdd_llamacpp_adapter/session/arrivals.py", "Add type hints where they are missing."),
    ("src/pdd_llamacpp_adapter/engine/plain_pattern.py", "Rename every parameter to a longer name."),
    ("src/pdd_llamacpp_adapter/engine/detokenizer.py", "Add a docstring to every function."),
    ("src/pdd_llamacpp_adapter/engine/bad_words.py", "Replace the docstrings by comments."),
)
DOCUMENTS = (
    ("docs/tracing.md", "What does tracing show? Quote the sentences that say it."),
    ("docs/device.md", "What does the device do first? Answer with quotations."),
    ("docs/server.md", "Which routes does the server have? Quote the text."),
    ("docs/gateways.md", "What do gateways leave out? Quote the text."),
    ("docs/hardware.md", "Which settings are refused, and when? Quote the text."),
    ("docs/plan.md", "What is a plan? Quote the sentences that say it."),
    ("docs/kv.md", "When is the KV cache of the cloud used? Answer with quotations."),
)
CHAT = (
    "Tell me a story about a lighthouse keeper and a storm.",
    "How do I learn to play the guitar as an adult?",
    "Explain why the sky is blue to a child.",
    "What should I see in Lisbon in three days?",
    "Write a letter to a friend who moved to another country.",
    "Is it better to live in a city or in the country?",
    "Describe how bread is made, from the field to the table.",
)
EXCERPT = 2200
"""Characters of a file or document."""


@dataclass(frozen=True)
class Run:
    """One answer."""

    ids: tuple[int, ...]
    rows: int
    steps: int
    wall_s: float
    cpu_s: float
    logits: tuple[np.ndarray, ...] = ()
    """Those behind each token, if they were asked for."""


class Always(StepCosts):
    """Steps that cost the same whatever is in them, so that every draft is worth it."""

    def seconds(self, rows: int) -> float:
        return 1.0


def prompts() -> dict[str, list[str]]:
    def text(name: str) -> str:
        return (REPOSITORY / name).read_text()[:EXCERPT]

    return {
        "code edits": [f"```python\n{text(name)}\n```\n{wish} Reply with the whole file." for name, wish in CODE],
        "documents": [f"{text(name)}\n\n{question}" for name, question in DOCUMENTS],
        "open chat": list(CHAT),
    }


async def answer(
    engine: DeviceEngine, request: AnswerRequest, costs: StepCosts | None, *, keep: bool = False
) -> Run:
    """Make one answer, with lookup if there are `costs`, behind a prompt whose last token is processed alone."""
    kept = []
    prompt = list(request.prompt_token_ids)
    if (held := await engine.slots[0].memory.start(prompt)) < len(prompt) - 1:
        await engine.slots[0].extend(prompt[held:-1])
    logits = await engine.slots[0].extend(prompt[-1:], want_logits=True)
    sampler, ids, rows, steps = Sampler(request, stop_ids=()), [], 0, 0

    def choose(logits):
        if keep:
            kept.append(logits.copy())
        token, _ = sampler.sample(logits)
        ids.append(token)
        return Choice(token, last=len(ids) == request.max_tokens)

    drafter = None if costs is None else LookupDrafter(prompt, left=request.max_tokens, costs=costs)
    begun, cpu = time.perf_counter(), time.process_time()
    async for step in engine.slots[0].generate(logits, choose, drafter):
        rows, steps = rows + step.rows, steps + 1
    return Run(tuple(ids), rows, steps, time.perf_counter() - begun, time.process_time() - cpu, tuple(kept))


async def compare(engine: DeviceEngine, options: argparse.Namespace) -> dict[str, object]:
    """Tell how logits behind drafts differ from those behind single tokens, and what becomes of greedy answers."""
    same, differences, margins = 0, [], []
    count = 0
    for text in [text for kind in options.kinds for text in prompts()[kind][: options.prompts]]:
        ids = engine.vocab.render_chat([{"role": "user", "content": text}])
        request = AnswerRequest(prompt_token_ids=ids, max_tokens=options.tokens)
        off, on = [await answer(engine, request, costs, keep=True) for costs in (None, Always())]
        alike = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(off.ids, on.ids, strict=True)))
        pairs = list(zip(off.logits, on.logits, strict=True))[: alike + 1]
        differences += [float(np.abs(a - b).max()) for a, b in pairs]
        count, same = count + 1, same + (alike == len(off.ids))
        if alike < len(off.ids):
            margins.append(float(off.logits[alike][off.ids[alike]] - off.logits[alike][on.ids[alike]]))
        print(f"{alike} of {len(off.ids)} tokens alike, {on.steps} steps", flush=True)
    return {
        "answers": count,
        "same_ids": same,
        "positions": len(differences),
        "largest_difference": max(differences),
        "median_difference": statistics.median(differences),
        "margins_where_they_part": sorted(margins),
    }


async def measure(engine: DeviceEngine, options: argparse.Namespace) -> dict[str, object]:
    costs, result = StepCosts(), {}
    for kind in options.kinds:
        runs: dict[bool, list[Run]] = {False: [], True: []}
        same = []
        for text in prompts()[kind][: options.prompts]:
            ids = engine.vocab.render_chat([{"role": "user", "content": text}])
            request = AnswerRequest(
                prompt_token_ids=ids, max_tokens=options.tokens, temperature=options.temperature, seed=5
            )
            for number in range(options.rounds):
                pair = {}
                for lookup in (False, True) if number % 2 == 0 else (True, False):
                    pair[lookup] = await answer(engine, request, costs if lookup else None)
                    runs[lookup].append(pair[lookup])
            same.append(pair[True].ids == pair[False].ids)
        result[kind] = summary(runs, same)
        print(kind, json.dumps(result[kind]), flush=True)
    return result


def summary(runs: dict[bool, list[Run]], same: list[bool]) -> dict[str, object]:
    def rate(of: list[Run], which: str) -> float:
        return round(sum(len(run.ids) - 1 for run in of) / sum(getattr(run, which) for run in of), 2)

    off, on = runs[False], runs[True]
    noise = [abs(a.cpu_s / b.cpu_s - 1) for a, b in pairwise(off) if a.ids == b.ids]
    ratios = [a.cpu_s / len(a.ids) / (b.cpu_s / len(b.ids)) for a, b in zip(off, on, strict=True)]
    return {
        "answers": len(same),
        "same_ids": sum(same),
        "cpu_tps": [rate(off, "cpu_s"), rate(on, "cpu_s")],
        "wall_tps": [rate(off, "wall_s"), rate(on, "wall_s")],
        "cpu_speedup": round(rate(on, "cpu_s") / rate(off, "cpu_s"), 3),
        "cpu_speedup_median": round(statistics.median(ratios), 3),
        "noise": round(statistics.median(noise), 3) if noise else None,
        "cpu_speedups": [round(ratio, 3) for ratio in sorted(ratios)],
        "tokens_per_step": round(sum(len(run.ids) for run in on) / sum(run.steps for run in on), 2),
        "rows_per_token": round(sum(run.rows for run in on) / sum(len(run.ids) for run in on), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="default: the demo model")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=7, help="of each kind")
    parser.add_argument("--kinds", nargs="+", default=list(prompts()), choices=list(prompts()))
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with DeviceEngine.open(options.gguf or device_gguf(), n_ctx=N_CTX, threads=options.threads) as engine:
        result = asyncio.run((compare if options.compare else measure)(engine, options))
    print(json.dumps(result))
    if options.json:
        options.json.write_text(
            json.dumps({"threads": options.threads, "tokens": options.tokens, **result}, indent=2)
        )


if __name__ == "__main__":
    main()
