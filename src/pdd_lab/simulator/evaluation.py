"""What a policy's choices come to on a trace: cloud work, stalls, latency, quality."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.planner.lengths import OutputLengths
from pdd_lab.simulator.choices import fixed, oracle, plain, planner
from pdd_lab.simulator.cloud_times import CloudTimes, cloud_times, part_of
from pdd_lab.simulator.instance import simulate
from pdd_lab.simulator.offered_load import Load
from pdd_lab.simulator.outcomes import CLOUD_ONLY, DEVICE_ONLY, HANDOFF, Choices, Outcomes, Requests, outcomes
from pdd_lab.simulator.trace_scenario import true_speeds

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pdd_lab.simulator.trace_scenario import Scenario, Truth

FIXED = (8, 16, 32, 64, 128)
"""Budgets that are tried as they are."""
_MOST_AT_ONCE = 8_000
"""Requests of a throughput run."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One policy on one trace."""

    choices: Choices
    times: CloudTimes
    outcomes: Outcomes
    requests_per_s: float
    """Requests of this trace that one instance can take per second, those included that it has no part in."""
    served: NDArray[np.bool_]
    """False for requests that the KV cache can never hold: the cloud refuses them, and no figure has them."""
    stall_limit: float
    """Share of answers that may stall, by the goals."""
    kv_cell_bytes: int = 0
    """Of one cell of the KV cache that a device loads."""
    lengths: OutputLengths | None = None
    """What the planner has learnt of the answers' lengths."""

    def only(self, served: NDArray[np.bool_]) -> Evaluation:
        """Return the same, with no more than these requests counted."""
        return replace(self, served=self.served & served)

    @property
    def decode_tokens(self) -> float:
        """Tokens that the cloud decodes, those in vain included."""
        return float(self.outcomes.cloud_decode_tokens[self.served].sum())

    @property
    def prefill_tokens(self) -> float:
        """Prompt tokens that are sent to the cloud."""
        return float(self.outcomes.cloud_prefill_tokens[self.served].sum())

    @property
    def cost(self) -> float:
        """Token-seconds, as in `pdd_core.planner.cost`."""
        return float(self.outcomes.cloud_cost[self.served].sum())

    @property
    def kv_bytes(self) -> float:
        """Bytes of the KV cache that devices load."""
        return self.kv_cell_bytes * float(self.outcomes.kv_cells[self.served].sum())

    @property
    def kv_share(self) -> float:
        """Share of requests whose devices load cells."""
        return float((self.choices.kv & (self.choices.verdict == HANDOFF)).mean())

    @property
    def stalled_share(self) -> float:
        """Share of answers whose reader has to wait between two tokens."""
        return float(self.outcomes.stalled[self.served].mean())

    @property
    def keeps_stall_limit(self) -> bool:
        """Whether no more answers stall than the goals allow."""
        return self.stalled_share <= self.stall_limit

    @property
    def refused(self) -> int:
        """Requests that the cloud cannot hold."""
        return int(np.count_nonzero(~self.served))

    @property
    def qoe(self) -> float:
        """Mean quality of experience."""
        return float(self.outcomes.qoe[self.served].mean())

    @property
    def kept_share(self) -> float:
        """Share of the prompts' tokens that devices read in handoffs; nan without any."""
        at = self.choices.verdict == HANDOFF
        return float(self.choices.refine_ratio[at].mean()) if at.any() else float("nan")

    def share(self, verdict: int) -> float:
        """Return the share of requests with this verdict."""
        return float((self.choices.verdict == verdict).mean())

    @property
    def ttft_s(self) -> tuple[float, float]:
        """Median and 99th percentile."""
        low, high = np.percentile(self.outcomes.ttft_s[self.served], [50, 99])
        return float(low), float(high)


def compare(scenario: Scenario, *, budgets: Sequence[int] = FIXED) -> dict[str, Evaluation]:
    """Return each policy's evaluation by name: planner, best_fixed, fixed_N for each of `budgets`, oracle, plain.

    All see the same requests, devices and network.
    """
    truth = true_speeds(scenario)
    # a planner that has run for a while knows the cloud's times under the load that handoffs leave it
    usual = cloud_times(scenario, planner(scenario, cloud_times(scenario, fixed(scenario, FIXED[-1]))))
    lengths = OutputLengths()
    planned = replace(evaluate(scenario, truth, planner(scenario, usual, lengths)), lengths=lengths)
    made = {"planner": planned, "best_fixed": best_fixed(scenario, truth, usual)}
    made |= {f"fixed_{budget}": evaluate(scenario, truth, fixed(scenario, budget)) for budget in budgets}
    # it knows the cloud's times as they are under the planner's load, and keeps them
    made["oracle"] = evaluate(scenario, truth, oracle(scenario, truth, planned.times), planned.times)
    made["plain"] = evaluate(scenario, truth, plain(scenario))
    return made


def ceiling(scenario: Scenario) -> float:
    """Return the requests per second of one instance that does nothing but prefill every prompt: a budget of 1."""
    every = fixed(scenario, 1)
    return throughput(scenario, every, every.cloud_tokens(scenario.trace.output_tokens))


def evaluate(scenario: Scenario, truth: Truth, choices: Choices, times: CloudTimes | None = None) -> Evaluation:
    """Return what `choices` come to, with the cloud under the load that they leave it, or with these times.

    A device may close the cloud before its budget is used up. How soon depends on the cloud's times, and these on
    what it decodes: they are found for whole budgets first, and again for the tokens that this comes to.
    """
    found = times or cloud_times(scenario, choices)
    made = outcomes_of(scenario, truth, found, choices)
    decoded = _decoded(made, choices)
    asked = choices.cloud_tokens(scenario.trace.output_tokens)
    if times is None and (decoded < asked)[choices.verdict != DEVICE_ONLY].any():
        found = cloud_times(scenario, choices, decoded)
        made = outcomes_of(scenario, truth, found, choices)
        decoded = _decoded(made, choices)
    return Evaluation(
        choices,
        found,
        made,
        throughput(scenario, choices, decoded),
        _served(scenario, choices),
        scenario.goals.stall_probability,
        0 if scenario.link is None else scenario.link.cell_bytes,
    )


def _decoded(made: Outcomes, choices: Choices) -> NDArray[np.int64]:
    """Return the tokens that the cloud decodes of each request that it has a part in; at least 1."""
    return np.where(choices.verdict == DEVICE_ONLY, 1, np.maximum(made.cloud_decode_tokens, 1)).astype(np.int64)


def _served(scenario: Scenario, choices: Choices) -> NDArray[np.bool_]:
    """Return which requests the devices make alone, or the cloud can hold with what it is asked for."""
    trace, cloud = scenario.trace, scenario.cloud
    needed = trace.prompt_tokens + choices.cloud_tokens(trace.output_tokens)
    room = cloud.kv_tokens // cloud.block_size * cloud.block_size
    return np.asarray((choices.verdict == DEVICE_ONLY) | (needed <= room))


def best_fixed(scenario: Scenario, truth: Truth, times: CloudTimes) -> Evaluation:
    """Return what comes of the smallest fixed budget with which no more answers stall than the goals allow.

    It is searched for with the cloud's `times`, and raised if those that it leads to ask for more. Where none
    keeps them, it is the largest: see `keeps_stall_limit`.
    """
    low, high = 1, int(scenario.trace.output_tokens.max())
    while low < high:
        middle = (low + high) // 2
        choices = fixed(scenario, middle)
        tried = outcomes_of(scenario, truth, times, choices)
        if tried.stalled[_served(scenario, choices)].mean() <= scenario.goals.stall_probability:
            high = middle
        else:
            low = middle + 1
    found = evaluate(scenario, truth, fixed(scenario, low))
    while not found.keeps_stall_limit and low < scenario.trace.output_tokens.max():
        low += 1 + low // 50
        found = evaluate(scenario, truth, fixed(scenario, low))
    return found


def throughput(scenario: Scenario, choices: Choices, tokens: NDArray[np.int64]) -> float:
    """Return the requests per second of one instance that gets the trace, or a sample of it, all at once.

    Those are left out that it cannot hold. `tokens` is what it decodes of each.
    """
    trace = scenario.trace
    able = np.flatnonzero(_served(scenario, choices))
    at = able[np.unique(np.linspace(0, len(able) - 1, min(len(able), _MOST_AT_ONCE)).astype(np.intp))]
    in_cloud = at[choices.verdict[at] != DEVICE_ONLY]
    if not in_cloud.size:
        return float("inf")
    load = part_of(Load.of(trace, tokens), in_cloud)
    served = simulate(replace(load, arrival_s=np.zeros(len(load))), scenario.cloud)
    return len(at) / served.end_s


def outcomes_of(scenario: Scenario, truth: Truth, times: CloudTimes, choices: Choices) -> Outcomes:
    """Return what becomes of each request. One that does not fit the device's context stays in the cloud."""
    fits = scenario.trace.prompt_tokens + scenario.trace.output_tokens <= scenario.device.n_ctx
    verdict = np.where(fits | (choices.verdict == DEVICE_ONLY), choices.verdict, CLOUD_ONLY)
    return outcomes(
        Requests(prompt_tokens=scenario.trace.prompt_tokens, output_tokens=scenario.trace.output_tokens),
        times.world(scenario, truth),
        verdict=verdict,
        decode_budget=choices.decode_budget,
        refine_ratio=choices.refine_ratio,
        kv=choices.kv,
    )
