"""Offline throughput of one engine in its steady state, measured without waiting for whole answers.

Requests per second are the tokens generated in a window over its seconds, divided by the tokens that one request
generates. The engine is full all the time: a finished request is followed by a new one. It starts in its steady
state as well: the first requests are spread over their lives, one that is `t` tokens old having a prompt longer by
`t` tokens and as many fewer to go (`first_wave`). So a window of seconds gives what a run of minutes would.
"""

import math
import random
import time
from dataclasses import dataclass
from typing import Literal
from uuid import uuid4

import numpy as np

End = Literal["full", "cap", "budget"]
KV_SHARE = 0.92
"""Of the KV cache, filled by the requests' mean size: above it vLLM begins to preempt."""


@dataclass(frozen=True, slots=True)
class Cell:
    """What one measurement sends: requests that are all alike."""

    prompt: int
    output: int
    """Tokens of the whole answer."""
    shared: int = 0
    """How many of the prompt's first tokens are the same in all requests, and come from the prefix cache."""
    end: End = "full"
    """Where the engine stops: after the whole answer, at `max_tokens`, or at the decode budget of an opted-in
    request whose `max_tokens` is the whole answer."""
    tokens: int = 0
    """After how many tokens it stops, unless it is ``full``."""

    @property
    def name(self) -> str:
        return f"{self.prompt}/{self.output}" + (f", {self.shared} shared" if self.shared else "")

    @property
    def generated(self) -> int:
        return self.output if self.end == "full" else min(self.tokens, self.output)


@dataclass(frozen=True, slots=True)
class Limits:
    """The engine's, as it was started."""

    max_num_seqs: int
    max_num_batched_tokens: int
    kv_tokens: int

    def running(self, cell: Cell) -> tuple[int, int]:
        """Return how many requests of `cell` run at once in the steady state, and how many more wait.

        A step has a fixed number of tokens: each running request takes one, prefill the rest. Where that, or
        `max_num_seqs`, is what binds, a queue keeps the engine full. Where the KV cache binds, a queue would only
        make vLLM preempt.
        """
        fresh, life = cell.prompt - cell.shared, cell.generated
        by_step = math.ceil(self.max_num_batched_tokens * life / (fresh + life))
        by_kv = int((KV_SHARE * self.kv_tokens - cell.shared) / (fresh + life / 2 + 8))
        queue = 2 * math.ceil(self.max_num_batched_tokens / fresh) + 8
        if by_kv <= min(by_step, self.max_num_seqs):
            return max(1, by_kv - by_kv % (64 if by_kv >= 256 else 16 if by_kv >= 64 else 1)), 0
        return min(by_step, self.max_num_seqs), queue

    def first_wave(self, cell: Cell, running: int) -> tuple[list[tuple[int, int]], int]:
        """Return (prompt, tokens to go) of the first requests, and the steps that their prefill takes.

        Those that came first go on meanwhile. So each is sent younger than it is to be in the steady state, by the
        steps that are left until then.
        """
        life = cell.generated
        to_go = [max(1, math.ceil(life * (i + 0.5) / running)) for i in range(running)]
        random.Random(0).shuffle(to_go)
        prompts, begun, steps = [cell.prompt - cell.shared + life - left for left in to_go], [0] * running, 0
        for _ in range(4):  # the prompts depend on the steps, and these on the prompts
            room, steps = self.max_num_batched_tokens, 0
            for i, prompt in enumerate(prompts):
                room -= prompt
                while room < 0:
                    room, steps = room + max(self.max_num_batched_tokens - i, 1), steps + 1
                begun[i] = steps
            ages = [life - left - (steps - begin) for left, begin in zip(to_go, begun, strict=True)]
            prompts = [max(1, cell.prompt - cell.shared + age) for age in ages]
        return [(p, left + steps - begin) for p, left, begin in zip(prompts, to_go, begun, strict=True)], steps


class Counter:
    """Sums up vLLM's own per-step statistics. Made by `counter_class`."""

    tokens = steps = running = preempted = 0


def counter_class() -> type:
    """Return a class for ``LLMEngine(stat_loggers=[...])``; its `latest` is the instance that the engine made."""
    from vllm.v1.metrics.loggers import StatLoggerBase

    class StepCounter(Counter, StatLoggerBase):
        latest: "StepCounter"

        def __init__(self, vllm_config: object, engine_index: int = 0) -> None:
            StepCounter.latest = self

        def record(self, scheduler_stats=None, iteration_stats=None, *_args, **_kwargs) -> None:
            if scheduler_stats is not None and iteration_stats is not None:
                self.steps += 1
                self.running += scheduler_stats.num_running_reqs
                self.tokens += iteration_stats.num_generation_tokens
                self.preempted += iteration_stats.num_preempted_reqs

        def log_engine_initialized(self) -> None:
            pass

    return StepCounter


class Load:
    """Keeps one ``LLMEngine`` busy."""

    def __init__(self, engine, counter: Counter, limits: Limits, *, vocab_size: int, seed: int = 0) -> None:
        self._engine = engine
        self._counter = counter
        self._limits = limits
        self._ids = (vocab_size // 100, vocab_size - vocab_size // 100)
        self._numbers = np.random.default_rng(seed)
        self._sent = 0
        self._due: dict[str, int] = {}
        """Tokens that each request in flight has to give."""
        self._finished = 0

    def measure(self, cell: Cell, *, seconds: float) -> dict[str, float]:
        """Return the figures of a window of `seconds`, which begins and ends with a step of the engine.

        Raises:
            RuntimeError: a request ended after another number of tokens, or for another reason, than it should.
        """
        self._clear()  # what a failed measurement has left
        self._prefix = self._random(cell.shared)
        if cell.shared:  # into the prefix cache
            self._send(Cell(cell.prompt, 1, end="cap", tokens=1), 1)
            while self._due:
                self._step()
        running, queue = self._limits.running(cell)
        wave, steps = self._limits.first_wave(cell, running)
        for prompt, to_go in wave:
            self._send(cell, to_go, fresh=prompt)
        for _ in range(queue):
            self._send(cell, cell.generated)
        until = self._counter.steps + steps + min(cell.generated, 16) + 4
        while self._counter.steps < until:
            self._step_and_refill(cell)
        halves = [self._window(cell, seconds / 2) for _ in range(2)]
        self._clear()
        return self._figures(cell, halves, in_flight=running + queue)

    def _clear(self) -> None:
        self._engine.abort_request(list(self._due))
        self._due.clear()

    def _window(self, cell: Cell, seconds: float) -> dict[str, float]:
        counter = self._counter
        before = (counter.tokens, counter.steps, counter.running, counter.preempted, self._finished)
        begun, own = time.perf_counter(), time.thread_time()
        while True:
            self._step_and_refill(cell)
            took = time.perf_counter() - begun
            if took >= seconds and counter.steps - before[1] >= 4:
                break
        after = (counter.tokens, counter.steps, counter.running, counter.preempted, self._finished)
        tokens, steps, running, preempted, finished = (b - a for a, b in zip(before, after, strict=True))
        return {
            "seconds": took, "tokens": tokens, "steps": steps, "running": running, "preempted": preempted,
            "finished": finished, "front_end_s": time.thread_time() - own,
        }  # fmt: skip

    def _figures(self, cell: Cell, halves: list[dict[str, float]], *, in_flight: int) -> dict[str, float]:
        total = {name: sum(half[name] for half in halves) for name in halves[0]}
        rates = [half["tokens"] / half["seconds"] / cell.generated for half in halves]
        return {
            "requests_per_s": total["tokens"] / total["seconds"] / cell.generated,
            "finished_per_s": total["finished"] / total["seconds"],
            "generated_tokens_per_s": total["tokens"] / total["seconds"],
            "seconds": total["seconds"], "steps": total["steps"],
            "step_ms": 1000 * total["seconds"] / total["steps"],
            "running": total["running"] / total["steps"], "in_flight": in_flight, "preempted": total["preempted"],
            "second_half_over_first": rates[1] / rates[0] if rates[0] else math.nan,
            "front_end_share": total["front_end_s"] / total["seconds"],
        }  # fmt: skip

    def _random(self, count: int) -> list[int]:
        return self._numbers.integers(*self._ids, size=count).tolist()

    def _send(self, cell: Cell, to_go: int, *, fresh: int | None = None) -> None:
        """Send a request that ends after `to_go` tokens; `fresh` prompt tokens follow the shared ones."""
        from vllm import SamplingParams
        from vllm.inputs import tokens_input
        from vllm.sampling_params import RequestOutputKind

        opted_in = cell.end == "budget"
        extra = {"pdd_handoff": uuid4().hex, "pdd_decode_budget": to_go} if opted_in else None
        params = SamplingParams(
            max_tokens=max(cell.output, to_go + 1) if opted_in else to_go, temperature=0, ignore_eos=True,
            detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY, extra_args=extra,
        )  # fmt: skip
        self._sent += 1
        number = f"{self._sent}"
        self._due[number] = to_go
        prompt = self._prefix + self._random(cell.prompt - cell.shared if fresh is None else fresh)
        self._engine.add_request(number, tokens_input(prompt), params)

    def _step(self) -> list:
        finished = [output for output in self._engine.step() if output.finished and output.request_id in self._due]
        for output in finished:
            self._finished += 1
            due, answer = self._due.pop(output.request_id), output.outputs[0]
            if len(answer.token_ids) != due or answer.finish_reason != "length":
                raise RuntimeError(f"{len(answer.token_ids)} tokens, {answer.finish_reason}, instead of {due}")
        return finished

    def _step_and_refill(self, cell: Cell) -> None:
        for output in self._step():
            ended = output.outputs[0].stop_reason
            if cell.end == "budget" and cell.tokens < cell.output and ended != "pdd_handoff":
                raise RuntimeError(f"a budget ended with stop_reason {ended}: is the plugin's scheduler in use?")
            self._send(cell, cell.generated)
