"""A burst of five times the sustainable rate on vLLM's own scheduler, in computed time: a step lasts as long as a
GPU's would by a linear model. So what is asserted depends on no machine; benchmarks/burst.py measures a real one.
"""

import random
from dataclasses import dataclass, field

import pytest
from vllm_by_hand import request_by_hand, scheduler_by_hand

from pdd_core.break_even import break_even_budget
from pdd_vllm_plugin import scheduler_mixin

RATE = 20.0  # tokens per second shown
BEFORE, BURST, AFTER = 10.0, 5.0, 20.0  # seconds
SETTLED = 10.0  # seconds after the burst by which all is as before


@dataclass
class Case:
    prompt: int
    budget: int
    prefill_tps: float
    max_num_seqs: int
    sustainable: float
    """Requests per second with the full budget, by the model below."""

    @property
    def least(self):
        return break_even_budget(self.prompt, rate=RATE, prefill_tps=self.prefill_tps, headroom=1.0)


@dataclass
class Served:
    arrival: float
    tokens_at: list = field(default_factory=list)
    ended: tuple = ()

    @property
    def ttft(self):
        return self.tokens_at[0] - self.arrival

    def wait_at_handoff(self, case):
        """Seconds that the user waits for the device's first token, over the gap between two shown ones."""
        ready, shown = self.arrival + case.prompt / case.prefill_tps, None
        for at in self.tokens_at:
            shown = at if shown is None else max(at, shown + 1 / RATE)
            ready = max(ready, at) + 1 / case.prefill_tps
        return max(0.0, ready - shown - 1 / RATE)


class Clock:
    now = 0.0

    def monotonic(self):
        return self.now

    time = monotonic


def step_seconds(step, decoding):
    prefilled = step.total_num_scheduled_tokens - decoding
    return 0.015 + prefilled / 40_000 + 0.0001 * decoding


def serve(scheduler, clock, case, arrivals, *, says_least):
    """Run to the end with one step scheduled ahead; return what became of each request."""
    from vllm.v1.outputs import ModelRunnerOutput

    fields = {"pdd_decode_budget": case.budget, **({"pdd_least_budget": case.least} if says_least else {})}
    served, coming, steps, computed = {}, list(enumerate(arrivals)), [], {}
    draw = random.Random(5)
    while coming or scheduler.has_unfinished_requests() or steps:
        if not steps and not scheduler.has_unfinished_requests():
            clock.now = max(clock.now, coming[0][1])
        while coming and coming[0][1] <= clock.now:
            number, at = coming.pop(0)
            name = f"r{number}"
            served[name] = Served(at)
            extra = {"pdd_handoff": f"{number:032}", **fields}
            prompt = [draw.randrange(40_000) for _ in range(case.prompt)]
            scheduler.add_request(
                request_by_hand(name, prompt, max_tokens=4000, extra_args=extra, arrival_time=at)
            )
        output = scheduler.schedule()
        if output.total_num_scheduled_tokens:
            steps.append(output)
            if len(steps) < 2:
                continue
        step = steps.pop(0)
        names, sampled, decoding = list(step.num_scheduled_tokens), [], 0
        for name in names:
            decoding += computed.get(name, 0) >= case.prompt
            computed[name] = computed.get(name, 0) + step.num_scheduled_tokens[name]
            sampled.append([7] if computed[name] >= case.prompt else [])
        clock.now += step_seconds(step, decoding)
        result = ModelRunnerOutput(
            req_ids=names, req_id_to_index={name: i for i, name in enumerate(names)},
            sampled_token_ids=sampled, logprobs=None, prompt_logprobs_dict={}, pooler_output=[],
        )  # fmt: skip
        for of_client in scheduler.update_from_output(step, result).values():
            for out in of_client.outputs:
                served[out.request_id].tokens_at += [clock.now] * len(out.new_token_ids)
                if out.finish_reason is not None:
                    served[out.request_id].ended = (str(out.finish_reason), out.stop_reason)
    return list(served.values())


def poisson(draw, rate, begin, end):
    now = begin
    while (now := now + draw.expovariate(rate)) < end:
        yield now


def p99(values):
    return sorted(values)[int(0.99 * len(values))]


CASES = {
    # a phone's prefill: answers stay long in the cloud, and places are what is short
    "slots": Case(prompt=512, budget=512, prefill_tps=100.0, max_num_seqs=24, sustainable=2.3),
    # a fast device and long prompts: few tokens are decoded, and prefill is what is short
    "prefill": Case(prompt=2000, budget=64, prefill_tps=1000.0, max_num_seqs=128, sustainable=13.0),
}


@pytest.fixture(params=CASES)
def both(request, prepared, monkeypatch):
    """The same arrivals with both kinds of requests."""
    case = CASES[request.param]
    draw = random.Random(1)
    arrivals = [
        *poisson(draw, 0.5 * case.sustainable, 0.0, BEFORE),
        *poisson(draw, 5 * case.sustainable, BEFORE, BEFORE + BURST),
        *poisson(draw, 0.5 * case.sustainable, BEFORE + BURST, BEFORE + BURST + AFTER),
    ]
    results = {}
    for kind in ("fixed", "load"):
        clock = Clock()
        monkeypatch.setattr(scheduler_mixin, "time", clock)
        scheduler = scheduler_by_hand(
            prepared.vllm_dir, max_num_seqs=case.max_num_seqs, max_num_batched_tokens=2048, max_model_len=8192,
            num_blocks=40_000,
        )  # fmt: skip
        results[kind] = serve(scheduler, clock, case, arrivals, says_least=kind == "load")
        assert len(results[kind]) == len(arrivals)
    return request.param, case, results


def test_a_burst(both):
    name, case, results = both
    ttft = {
        kind: p99([one.ttft for one in served if BEFORE <= one.arrival < BEFORE + BURST])
        for kind, served in results.items()
    }
    tokens = {kind: [len(one.tokens_at) for one in served] for kind, served in results.items()}
    print(name, ttft, {kind: sum(made) / len(made) for kind, made in tokens.items()})
    assert set(tokens["fixed"]) == {case.budget}
    assert case.least <= min(tokens["load"]) < case.budget
    assert all(one.ended == ("length", "pdd_handoff") for served in results.values() for one in served)
    for fixed, load in zip(results["fixed"], results["load"], strict=True):
        assert load.wait_at_handoff(case) <= fixed.wait_at_handoff(case) + 1e-6
    if name == "prefill":  # a backlog of prompts is worked off no sooner than they can be read
        assert ttft["load"] <= ttft["fixed"]
        return
    assert ttft["fixed"] >= 3 * ttft["load"]
    calm = [one for one in results["load"] if one.arrival < BEFORE]
    settled = [one for one in results["load"] if one.arrival >= BEFORE + BURST + SETTLED]
    assert settled
    assert max(one.ttft for one in settled) <= 2 * max(one.ttft for one in calm)
    assert {len(one.tokens_at) for one in settled} == {case.budget}
