"""How soon and how fast one simulated cloud answers each request, under the load that a policy leaves it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.planner.cost import prefill_weight
from pdd_core.planner.types import CLOSING_MARGIN
from pdd_lab.simulator.instance import simulate
from pdd_lab.simulator.offered_load import Load
from pdd_lab.simulator.outcomes import DEVICE_ONLY, World
from pdd_lab.simulator.trace_scenario import expected_speeds

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pdd_lab.simulator.offered_load import Served
    from pdd_lab.simulator.outcomes import Choices
    from pdd_lab.simulator.trace_scenario import Scenario, Truth

_DEVIATIONS_PER_MAD = 1.4826
"""Of a normal distribution."""


@dataclass(frozen=True, slots=True)
class CloudTimes:
    """Arrays of shape (requests,), without round trips; nan where the cloud has no part."""

    ttft_s: NDArray[np.float64]
    tpot_s: NDArray[np.float64]
    """Mean gap of each answer's part in the cloud; the usual one where that is a single token."""
    usual_tpot: float
    """Median gap."""
    served: Served

    def expected_ttft(self, scenario: Scenario) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return what a client that has seen these times expects of each request, and how far it may be off."""
        cloud = scenario.cloud
        prompts = scenario.trace.prompt_tokens.astype(np.float64)
        shape = np.asarray(cloud.base_s + cloud.per_request_s + cloud.per_prefill_token_s * prompts)
        ratios = (self.ttft_s / shape)[np.isfinite(self.ttft_s)]
        level = float(np.median(ratios)) if ratios.size else 1.0
        spread = _DEVIATIONS_PER_MAD * float(np.median(np.abs(ratios - level))) if ratios.size else 0.0
        return level * shape, spread * shape

    def world(self, scenario: Scenario, truth: Truth) -> World:
        """Return the true times as `pdd_lab.simulator.outcomes` takes them."""
        expected, _ = self.expected_ttft(scenario)
        return World(
            prefill_tps=truth.prefill_tps,
            decode_tps=truth.decode_tps,
            ttft_s=truth.rtt_s + np.where(np.isfinite(self.ttft_s), self.ttft_s, expected),
            tpot_s=self.tpot_s,
            rtt_s=truth.rtt_s,
            cells_per_s=truth.cells_per_s,
            rate=scenario.rate,
            paced_tps=expected_speeds(scenario).decode_tps,
            ttft_target_s=scenario.goals.ttft_s,
            prefill_weight=prefill_weight(scenario.cloud),
            closing_margin=CLOSING_MARGIN,
        )


def cloud_times(scenario: Scenario, choices: Choices, decoded: NDArray[np.int64] | None = None) -> CloudTimes:
    """Serve what `choices` leave to the cloud, on one instance, as the trace's requests arrive.

    It decodes whole budgets, or `decoded` tokens of each request.
    """
    trace = scenario.trace
    part = np.flatnonzero(choices.verdict != DEVICE_ONLY)
    tokens = choices.cloud_tokens(trace.output_tokens) if decoded is None else decoded
    served = simulate(part_of(Load.of(trace, tokens), part), scenario.cloud)
    ttft, tpot = np.full(len(trace), np.nan), np.full(len(trace), np.nan)
    ttft[part] = served.first_token_s - trace.arrival_s[part]
    several = tokens[part] > 1
    gaps = (served.finish_s - served.first_token_s)[several] / (tokens[part][several] - 1)
    gaps = np.where(np.isfinite(gaps), gaps, np.nan)
    alone = scenario.cloud.base_s + scenario.cloud.per_sequence_s
    usual = max(1e-6, float(np.nanmedian(gaps)) if np.isfinite(gaps).any() else alone)
    tpot[part[several]] = gaps
    return CloudTimes(ttft, np.where(np.isfinite(tpot), np.maximum(tpot, 1e-9), usual), usual, served)


def part_of(load: Load, at: NDArray[np.intp]) -> Load:
    """Return some requests of a load."""
    if len(at) == len(load):
        return load
    more = {}
    if len(load.hash_offsets):
        counts = np.diff(load.hash_offsets)[at]
        offsets = np.concatenate([[0], np.cumsum(counts)])
        inside = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        more = {
            "hash_offsets": offsets,
            "hash_values": load.hash_values[np.repeat(load.hash_offsets[at], counts) + inside],
        }
    return Load(
        load.arrival_s[at],
        load.prompt_tokens[at],
        load.output_tokens[at],
        block_tokens=load.block_tokens,
        **more,
    )
