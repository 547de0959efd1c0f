"""What a trace is planned for: devices, a cloud, goals; and how fast each device turns out to be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import ConfigurationError
from pdd_core.planner.types import Goals
from pdd_lab.traces.trace import MOST_TOKENS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice, RatePoint
    from pdd_lab.simulator.cell_link import CellLink
    from pdd_lab.traces.trace import Trace

    Floats = NDArray[np.float64]

_GRID = 16
"""Tokens between two points of the time that a device takes to read a prompt."""
_MOST_SPREAD = 100
"""Of round trips, relative: with more, hardly any draw would be near the mean."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """One question to the simulator.

    Raises:
        ConfigurationError: the cloud holds none of the requests, works without taking time, or has round trips
            that vary more than around so short a mean they can.
    """

    trace: Trace
    device: MeasuredDevice
    cloud: MeasuredCloud
    rate: float
    """Tokens per second at which answers are shown."""
    goals: Goals = Goals()  # noqa: RUF009 - frozen
    refine_ratio: float | None = 1.0
    """Share of a prompt that devices read; None leaves it to the planner."""
    max_tokens: int = 4096
    """The longest answer that a client allows."""
    seed: int = 0
    link: CellLink | None = None
    """Over which devices get cells of the cloud's KV cache; None where they get none."""

    def __post_init__(self) -> None:
        cloud, trace = self.cloud, self.trace
        shortest = int((trace.prompt_tokens + trace.output_tokens).min(initial=MOST_TOKENS))
        if shortest > cloud.kv_tokens // cloud.block_size * cloud.block_size:
            raise ConfigurationError(
                f"{cloud.name} holds {cloud.kv_tokens:,} tokens, fewer than the shortest request of {trace.name}"
            )
        if not (cloud.base_s or cloud.per_prefill_token_s):
            raise ConfigurationError(
                f"{cloud.name}: no step of it takes any time (base_s and per_prefill_token_s are 0)"
            )
        if cloud.jitter_s > _MOST_SPREAD * cloud.rtt_s:
            raise ConfigurationError(
                f"a jitter of {cloud.jitter_s:g} s around a round trip of {cloud.rtt_s:g} s cannot be: "
                f"no trip takes less than no time, so at most {_MOST_SPREAD} times the round trip"
            )

    @property
    def fixed_ratio(self) -> float:
        """The share for policies that choose none."""
        return 1.0 if self.refine_ratio is None else self.refine_ratio


@dataclass(frozen=True, slots=True)
class Truth:
    """How fast each request's device and network turn out to be; arrays of shape (requests,)."""

    prefill_tps: Floats
    """Mean over the prompt."""
    decode_tps: Floats
    rtt_s: Floats
    cells_per_s: Floats | float = 0.0
    """Cells of the KV cache that the link carries."""


def expected_speeds(scenario: Scenario) -> Truth:
    """Return what the profiles say of each request, before chance has its part."""
    prompts = scenario.trace.prompt_tokens.astype(np.float64)
    device, count = scenario.device, len(scenario.trace)
    middle = prompts + scenario.trace.output_tokens / 2
    return Truth(
        prompts / reading_seconds(device.prefill_tps, prompts),
        _at(device.decode_tps, middle),
        np.full(count, scenario.cloud.rtt_s),
        0.0 if scenario.link is None else scenario.link.cells_per_s,
    )


def true_speeds(scenario: Scenario) -> Truth:
    """Return each request's speeds: log-normal around those of the profiles, the same for the same seed.

    A request's device is faster or slower in both of its speeds; round trips and links are independent of it.
    """
    draw = np.random.default_rng(scenario.seed)
    count, expected = len(scenario.trace), expected_speeds(scenario)
    speed = _factor(draw, count, scenario.device.spread)
    cloud = scenario.cloud
    trip = _factor(draw, count, cloud.jitter_s / cloud.rtt_s if cloud.rtt_s else 0.0)
    carried = expected.cells_per_s * _factor(draw, count, 0.0 if scenario.link is None else scenario.link.spread)
    return Truth(expected.prefill_tps * speed, expected.decode_tps * speed, expected.rtt_s * trip, carried)


def reading_seconds(points: tuple[RatePoint, ...], prompts: Floats) -> Floats:
    """Return how long a device with these speeds reads prompts of so many tokens."""
    if len(points) == 1:
        return prompts / points[0].value
    most = float(prompts.max(initial=1.0))
    grid = np.union1d(np.arange(0.0, most + _GRID, _GRID), [point.at for point in points if point.at < most])
    per_token = 1.0 / _at(points, grid)
    seconds = np.concatenate([[0.0], np.cumsum(np.diff(grid) * (per_token[1:] + per_token[:-1]) / 2)])
    return np.asarray(np.interp(prompts, grid, seconds))


def _at(points: tuple[RatePoint, ...], lengths: Floats) -> Floats:
    return np.asarray(np.interp(lengths, [point.at for point in points], [point.value for point in points]))


def _factor(draw: np.random.Generator, count: int, spread: float) -> Floats:
    """Return log-normal factors with a mean of 1 and a standard deviation of `spread`."""
    sigma = np.sqrt(np.log1p(spread**2))
    return np.asarray(np.exp(draw.normal(-(sigma**2) / 2, sigma, count))) if spread else np.ones(count)
