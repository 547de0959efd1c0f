"""The policies that are compared: what each decides for every request of a trace.

The oracle's is the least that the cloud has to decode if lengths and times are known beforehand: a bound for all.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdd_core.planner.cost import prefill_weight
from pdd_core.planner.lengths import OutputLengths
from pdd_core.planner.rules import RATIOS
from pdd_lab.simulator.outcomes import (
    CLOUD_ONLY,
    DEVICE_ONLY,
    HANDOFF,
    Choices,
    Requests,
    least_tokens,
    loading_s,
    outcomes,
    reading_s,
    rhythm_s,
)
from pdd_lab.simulator.trace_scenario import expected_speeds
from pdd_lab.simulator.vector_planner import Circumstances, plan_many

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pdd_core.planner.length_table import LengthTable
    from pdd_lab.simulator.cloud_times import CloudTimes
    from pdd_lab.simulator.trace_scenario import Scenario, Truth
    from pdd_lab.simulator.vector_cases import Plans

_BATCH = 256
"""Requests that are planned before the planner learns how long their answers were."""
_MOST_LEARNT = 20_000
"""Answers that it learns from, evenly spread over the trace: more would cost only time."""


def plain(scenario: Scenario) -> Choices:
    """The cloud makes every answer."""
    count = len(scenario.trace)
    return Choices(
        np.full(count, CLOUD_ONLY, np.int8), np.zeros(count, np.int64), np.ones(count), np.zeros(count, np.bool_)
    )


def fixed(scenario: Scenario, budget: int) -> Choices:
    """Every request is handed off after so many tokens, with cells where there are any."""
    count, ratio = len(scenario.trace), scenario.fixed_ratio
    return Choices(
        np.full(count, HANDOFF, np.int8),
        np.full(count, budget, np.int64),
        np.full(count, ratio),
        np.full(count, scenario.link is not None and ratio >= 1.0),
    )


def planner(scenario: Scenario, times: CloudTimes, lengths: OutputLengths | None = None) -> Choices:
    """The built-in planner, which learns how long answers get as it goes, and knows speeds as profiles do.

    The answers of one batch of requests are learnt before the next is planned; the first has nothing but the
    prior. `lengths` has learnt all of them in the end.
    """
    trace, lengths = scenario.trace, OutputLengths() if lengths is None else lengths
    count, beliefs = len(trace), _Beliefs(scenario, times)
    parts = []
    for begin in range(0, count, _BATCH):
        end = min(begin + _BATCH, count)
        parts.append(beliefs.choices(np.arange(begin, end), lengths))
        for index in range(begin, end, 1 + count // _MOST_LEARNT):
            lengths.observe(trace.group(index), int(trace.prompt_tokens[index]), int(trace.output_tokens[index]))
    return Choices(
        np.concatenate([part.verdict for part in parts]),
        np.concatenate([part.decode_budget for part in parts]),
        np.concatenate([part.refine_ratio for part in parts]),
        np.concatenate([part.kv for part in parts]),
    )


def learnt_planner(scenario: Scenario, times: CloudTimes, lengths: OutputLengths) -> Choices:
    """The built-in planner, which has learnt how long answers get, and learns no more."""
    return _Beliefs(scenario, times).choices(np.arange(len(scenario.trace)), lengths)


def oracle(scenario: Scenario, truth: Truth, times: CloudTimes) -> Choices:
    """Return what asks least of the cloud for each request, if its length and all times are known beforehand.

    No answer stalls, and the device alone makes those that it begins within the target or before the cloud would,
    unless answers must begin in the cloud. No policy with these rules and these `times` asks for fewer tokens, at
    the shares of the prompt that the planner may choose among, and with cells where there are any; neither the
    quality of experience nor what bytes cost is looked at. Of ways that ask for equally many tokens it takes the
    whole prompt, then cells, then the largest share.
    """
    trace, goals = scenario.trace, scenario.goals
    world = times.world(scenario, truth)
    prompts, outputs = trace.prompt_tokens.astype(np.float64), trace.output_tokens.astype(np.float64)
    requests = Requests(prompt_tokens=prompts, output_tokens=outputs)
    step, ttft = 1.0 / truth.decode_tps, np.asarray(world.ttft_s)
    fits = prompts + outputs <= scenario.device.n_ctx
    alone = reading_s(prompts, truth.prefill_tps, ratio=1.0, ttft_s=0.0) + step
    on_device = fits & (alone <= np.maximum(goals.ttft_s, ttft)) & (not goals.must_begin_in_cloud)
    verdict = np.where(on_device, DEVICE_ONLY, CLOUD_ONLY)
    least, budget, kept = np.where(on_device, 0.0, outputs), np.zeros(len(trace)), np.ones(len(trace))
    cells = np.zeros(len(trace), np.bool_)
    rhythm, per_token = rhythm_s(world), 1.0 / truth.prefill_tps
    for ratio, kv in _ways(scenario):
        reading = reading_s(prompts, truth.prefill_tps, ratio=ratio, ttft_s=ttft)
        if kv:
            per_s, arrive = truth.cells_per_s, ttft + truth.rtt_s
            loading = loading_s(prompts, truth.prefill_tps, cells_per_s=per_s, arrive_s=arrive)
            reading = np.minimum(reading, arrive + loading)
        needed = least_tokens((reading + np.minimum(step, rhythm) - ttft, rhythm - per_token))
        tried = outcomes(requests, world, verdict=HANDOFF, decode_budget=needed, refine_ratio=ratio, kv=kv)
        better = fits & ~tried.stalled & (tried.cloud_decode_tokens < least)
        verdict, kept = np.where(better, HANDOFF, verdict), np.where(better, ratio, kept)
        cells = np.where(better, kv, cells)
        least, budget = np.where(better, tried.cloud_decode_tokens, least), np.where(better, needed, budget)
    return Choices(verdict.astype(np.int8), budget.astype(np.int64), kept, cells)


def _ways(scenario: Scenario) -> list[tuple[float, bool]]:
    """Return the shares of the prompt that the planner may choose among, and whether with cells."""
    first = scenario.fixed_ratio
    ways = [(first, False)]
    if scenario.link is not None and first >= 1.0:
        ways.append((1.0, True))
    if scenario.refine_ratio is None:
        ways += [(ratio, False) for ratio in RATIOS if ratio >= scenario.goals.lowest_ratio]
    return ways


class _Beliefs:
    """What the planner is told of a request: the profiles' speeds, and the cloud's times as they usually are."""

    def __init__(self, scenario: Scenario, times: CloudTimes) -> None:
        self._scenario = scenario
        self._expected = expected_speeds(scenario)
        self._ttft, self._ttft_sd = times.expected_ttft(scenario)
        self._tpot = times.usual_tpot

    def choices(self, at: NDArray[np.intp], lengths: OutputLengths) -> Choices:
        """Return the decisions for the requests with these numbers."""
        plans = self._plans(at, *self._tables(at, lengths))
        return Choices(plans.verdict, plans.decode_budget, plans.refine_ratio, plans.kv)

    def _tables(self, at: NDArray[np.intp], lengths: OutputLengths) -> tuple[list[LengthTable], NDArray[np.int64]]:
        """Return the distributions of the answers' lengths, and which of them is whose: groups may share one."""
        trace = self._scenario.trace
        buckets = lengths.buckets(trace.prompt_tokens[at])
        if not len(trace.groups):
            return list(lengths.tables()), buckets
        codes, group = np.unique(trace.groups[at], return_inverse=True)
        by_group = [lengths.tables(trace.group_names[code]) for code in codes]
        tables = list({id(table): table for row in by_group for table in row}.values())
        numbers = {id(table): number for number, table in enumerate(tables)}
        which = np.array([[numbers[id(table)] for table in row] for row in by_group])
        return tables, which[group, buckets]

    def _plans(self, at: NDArray[np.intp], tables: list[LengthTable], which: NDArray[np.int64]) -> Plans:
        scenario, expected, link = self._scenario, self._expected, self._scenario.link
        prompts = scenario.trace.prompt_tokens[at]
        given = Circumstances(
            prompt_tokens=prompts,
            max_tokens=scenario.max_tokens,
            rate=scenario.rate,
            prefill_tps=expected.prefill_tps[at],
            prefill_tps_sd=expected.prefill_tps[at] * scenario.device.spread,
            decode_tps=expected.decode_tps[at],
            ttft_s=self._ttft[at],
            ttft_s_sd=self._ttft_sd[at],
            tpot_s=self._tpot,
            rtt_s=scenario.cloud.rtt_s,
            rtt_s_sd=scenario.cloud.jitter_s,
            n_ctx=scenario.device.n_ctx,
            kv_cell_bytes=None if link is None else link.cell_bytes,
            kv_always=link is not None and link.always,
            kv_metered=link is not None and link.metered,
            link_bps=None if link is None else link.bytes_per_s,
            link_bps_sd=0.0 if link is None else link.bytes_per_s * link.spread,
        )
        return plan_many(
            given,
            tables,
            which,
            goals=scenario.goals,
            refine_ratio=scenario.refine_ratio,
            refinable=scenario.refine_ratio is None,
            prefill_weight=prefill_weight(scenario.cloud),
            byte_weight=0.0 if link is None else link.byte_weight,
        )
