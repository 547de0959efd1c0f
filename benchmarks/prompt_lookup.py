"""Tokens per second with prompt lookup and without: code edits, questions about a document, and open chat.

One model, one context. For each prompt both take turns, off on on off ..., from the same processed prompt. Greedy, or
seeded with `--temperature`. Rates are by the process's CPU time, since others may use the machine, and by the clock.

    python benchmarks/prompt_lookup.py [--gguf FILE] [--rounds 2] [--threads 1] [--tokens 160] [--json FILE]
"""

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

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
)
DOCUMENTS = (
    ("docs/tracing.md", "What does tracing show? Quote the sentences that say it."),
    ("docs/device.md", "What does the device do first? Answer with quotations."),
    ("docs/server.md", "Which routes does the server have? Quote the text."),
    ("docs/gateways.md", "What do gateways leave out? Quote the text."),
    ("docs/hardware.md", "Which settings are refused, and when? Quote the text."),
)
CHAT = (
    "Tell me a story about a lighthouse keeper and a storm.",
    "How do I learn to play the guitar as an adult?",
    "Explain why the sky is blue to a child.",
    "What should I see in Lisbon in three days?",
    "Write a letter to a friend who moved to another country.",
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


def prompts() -> dict[str, list[str]]:
    def text(name: str) -> str:
        return (REPOSITORY / name).read_text()[:EXCERPT]

    return {
        "code edits": [f"```python\n{text(name)}\n```\n{wish} Reply with the whole file." for name, wish in CODE],
        "documents": [f"{text(name)}\n\n{question}" for name, question in DOCUMENTS],
        "open chat": list(CHAT),
    }


async def answer(engine: DeviceEngine, request: AnswerRequest, costs: StepCosts | None) -> Run:
    """Make one answer behind its prompt, with lookup if there are `costs`. The prompt's last token is processed."""
    prompt = list(request.prompt_token_ids)
    await engine.memory.start(prompt)
    logits = await engine.extend(prompt[engine.memory.n_past :], want_logits=True)
    sampler, ids, rows, steps = Sampler(request, stop_ids=()), [], 0, 0

    def choose(logits):
        token, _ = sampler.sample(logits)
        ids.append(token)
        return Choice(token, last=len(ids) == request.max_tokens)

    drafter = None if costs is None else LookupDrafter(prompt, left=request.max_tokens, costs=costs)
    begun, cpu = time.perf_counter(), time.process_time()
    async for step in engine.generate(logits, choose, drafter):
        rows, steps = rows + step.rows, steps + 1
    return Run(tuple(ids), rows, steps, time.perf_counter() - begun, time.process_time() - cpu)


async def measure(engine: DeviceEngine, options: argparse.Namespace) -> dict[str, object]:
    costs, result = StepCosts(), {}
    for kind, texts in prompts().items():
        runs: dict[bool, list[Run]] = {False: [], True: []}
        same = []
        for text in texts[: options.prompts]:
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
    ratios = [a.cpu_s / len(a.ids) / (b.cpu_s / len(b.ids)) for a, b in zip(off, on, strict=True)]
    return {
        "answers": len(same),
        "same_ids": sum(same),
        "cpu_tps": [rate(off, "cpu_s"), rate(on, "cpu_s")],
        "wall_tps": [rate(off, "wall_s"), rate(on, "wall_s")],
        "cpu_speedup": round(rate(on, "cpu_s") / rate(off, "cpu_s"), 3),
        "cpu_speedup_median": round(statistics.median(ratios), 3),
        "cpu_speedups": [round(ratio, 3) for ratio in sorted(ratios)],
        "tokens_per_step": round(sum(len(run.ids) for run in on) / sum(run.steps for run in on), 2),
        "rows_per_token": round(sum(run.rows for run in on) / sum(len(run.ids) for run in on), 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gguf", type=Path, help="default: the demo model")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--prompts", type=int, default=5, help="of each kind")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with DeviceEngine.open(options.gguf or device_gguf(), n_ctx=N_CTX, threads=options.threads) as engine:
        result = asyncio.run(measure(engine, options))
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "tokens": options.tokens, **result}, indent=2))


if __name__ == "__main__":
    main()
