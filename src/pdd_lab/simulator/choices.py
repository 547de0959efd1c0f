"""The policies that are compared: what each decides for every request of a trace."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.planner.cost import prefill_weight
from pdd_core.planner.lengths import OutputLengths
from pdd_lab.simulator.outcomes import CLOUD_ONLY, HANDOFF
from pdd_lab.simulator.scenario import expected_speeds
from pdd_lab.simulator.vector_planner import Circumstances, plan_many

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pdd_core.planner.length_table import LengthTable
    from pdd_lab.simulator.cloud_times import CloudTimes
    from pdd_lab.simulator.scenario import Scenario
    from pdd_lab.simulator.vector_cases import Plans

_BATCH = 256
"""Requests that are planned before the planner learns how long their answers were."""
_MOST_LEARNT = 20_000
"""Answers that it learns from, evenly spread over the trace: more would cost only time."""
_UNCAPPED = 1 << 40


@dataclass(frozen=True, slots=True)
class Choices:
    """One policy's decisions; arrays of shape (requests,)."""

    verdict: NDArray[np.int8]
    """Codes as in `pdd_lab.simulator.outcomes.VERDICTS`."""
    decode_budget: NDArray[np.int64]
    """Of handoffs."""
    refine_ratio: NDArray[np.float64]

    def cloud_tokens(self, output_tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return what the cloud is asked to decode, where it has a part; at least 1."""
        capped = np.where(self.verdict == HANDOFF, self.decode_budget, _UNCAPPED)
        return np.asarray(np.minimum(output_tokens, np.maximum(capped, 1)))


def plain(scenario: Scenario) -> Choices:
    """The cloud makes every answer."""
    count = len(scenario.trace)
    return Choices(np.full(count, CLOUD_ONLY, np.int8), np.zeros(count, np.int64), np.ones(count))


def fixed(scenario: Scenario, budget: int) -> Choices:
    """Every request is handed off after so many tokens."""
    count = len(scenario.trace)
    ratio = np.full(count, scenario.fixed_ratio)
    return Choices(np.full(count, HANDOFF, np.int8), np.full(count, budget, np.int64), ratio)


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
    )


def learnt_planner(scenario: Scenario, times: CloudTimes, lengths: OutputLengths) -> Choices:
    """The built-in planner, which has learnt how long answers get, and learns no more."""
    return _Beliefs(scenario, times).choices(np.arange(len(scenario.trace)), lengths)


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
        return Choices(plans.verdict, plans.decode_budget, plans.refine_ratio)

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
        scenario, expected = self._scenario, self._expected
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
        )
        return plan_many(
            given,
            tables,
            which,
            goals=scenario.goals,
            refine_ratio=scenario.refine_ratio,
            refinable=scenario.refine_ratio is None,
            prefill_weight=prefill_weight(scenario.cloud),
        )
