"""A cloud's profile, fitted to measured throughput.

Where all requests are there from the beginning, what a step holds does not depend on how long steps take. The time
of a whole run is then linear in the six costs of a profile, and each coefficient is the time that the simulator
needs when only this cost is 1. So one non-negative linear least-squares problem fits them, on relative errors.
"""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from pdd_core.errors import ConfigurationError
from pdd_core.planner.profiles import MeasuredCloud
from pdd_lab.simulator.instance import simulate
from pdd_lab.simulator.offered_load import Load, Served

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

COSTS = (
    "base_s",
    "per_prefill_token_s",
    "per_sequence_s",
    "per_context_token_s",
    "per_request_s",
    "per_attended_token_s",
)
"""The fields of a `MeasuredCloud` that a fit finds."""


class Measurement(BaseModel):
    """One measured run: equal requests, handed to the engine all at once."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    prompt: PositiveInt
    """Tokens."""
    output: PositiveInt
    """Tokens of a whole answer."""
    cap: PositiveInt | None = None
    """Decode budget; None for whole answers."""
    requests: PositiveInt
    requests_per_s: PositiveFloat
    """Measured."""
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    shared_prefix: int = Field(default=0, ge=0)
    """The beginning of the prompt that all have in common and that was cached before the run; 0 for none."""

    @property
    def decoded(self) -> int:
        """Tokens that the cloud decodes for each request."""
        return self.output if self.cap is None else min(self.output, self.cap)

    @property
    def label(self) -> str:
        """A short name for tables."""
        shared = f", {self.shared_prefix} shared" if self.shared_prefix else ""
        return f"{self.prompt}:{self.output}{shared}, {'full' if self.cap is None else f'cap {self.cap}'}"


def replay(one: Measurement, cloud: MeasuredCloud) -> Served:
    """Return what the simulator makes of a measured run, on a cloud with the run's own limits."""
    limits = {"max_num_seqs": one.max_num_seqs, "max_num_batched_tokens": one.max_num_batched_tokens}
    profile = cloud.model_copy(update=limits)
    # what is cached before the run costs it nothing: shorter prompts, but for the room that the prefix takes
    cached = min(one.shared_prefix, one.prompt - 1) // cloud.block_size * cloud.block_size
    if not cached:
        return simulate(Load.at_once(one.requests, one.prompt, one.decoded), profile)
    load = Load.at_once(one.requests + 1, one.prompt, one.decoded, shared=cached, block_tokens=cloud.block_size)
    load.output_tokens[0] = 1
    load.arrival_s[1:] = 1e6  # the first request fills the cache long before the others come
    served = simulate(load, profile)
    return _without_first(served, 1e6)


def predicted(one: Measurement, cloud: MeasuredCloud) -> float:
    """Return the requests per second that the simulator predicts for a measured run."""
    return one.requests / replay(one, cloud).end_s


def fit_cloud_profile(
    measurements: Sequence[Measurement], *, name: str, model: str, kv_tokens: int, **more: Any
) -> MeasuredCloud:
    """Return the profile whose simulated runs take as long as the measured ones.

    Args:
        measurements: at least six, and unlike: short and long answers, short and long prompts.
        name: of the profile.
        model: that was measured.
        kv_tokens: that the KV cache holds, as vLLM logs it at its start.
        more: other fields of the profile; by default the limits are the largest measured, the round trip is 0.
            A cost among them is taken as known, and only the others are fitted: full batches tell little of
            `base_s`, which one answer alone shows by the time between its tokens.

    Raises:
        ConfigurationError: there are fewer than six measurements.
    """
    from scipy.optimize import nnls

    if len(measurements) < len(COSTS):
        raise ConfigurationError(f"{len(COSTS)} costs need as many measurements, not {len(measurements)}")
    limits = {
        key: max(getattr(one, key) for one in measurements) for key in ("max_num_seqs", "max_num_batched_tokens")
    }
    free: dict[str, Any] = dict.fromkeys(COSTS, 0.0)
    fields: dict[str, Any] = {
        "name": name,
        "model": model,
        "kv_tokens": kv_tokens,
        "rtt_s": 0.0,
        "jitter_s": 0.0,
        **limits,
        **more,
    }
    empty = MeasuredCloud(**{**fields, **free})
    times = np.array([_unit_seconds(one, empty) for one in measurements])
    seconds = np.array([one.requests / one.requests_per_s for one in measurements])
    share: NDArray[np.float64] = times / seconds[:, None]  # of the measured time, for one second of each cost
    known = np.array([float(more.get(cost, 0.0)) for cost in COSTS])
    asked = np.array([cost not in more for cost in COSTS])
    scale = np.maximum(share[:, asked].max(axis=0), 1e-300)
    found, _ = nnls(share[:, asked] / scale, np.maximum(1.0 - share @ known, 0.0))
    known[asked] = found / scale
    costs: dict[str, Any] = dict(zip(COSTS, known.tolist(), strict=True))
    return MeasuredCloud(**{**fields, **costs})


@lru_cache(maxsize=1024)
def _unit_seconds(one: Measurement, empty: MeasuredCloud) -> tuple[float, ...]:
    """Return how long a run takes where one cost is a second and all others are nothing, for each of `COSTS`."""
    return tuple(replay(one, empty.model_copy(update={cost: 1.0})).end_s for cost in COSTS)


def _without_first(served: Served, begin: float) -> Served:
    return replace(
        served,
        first_token_s=served.first_token_s[1:] - begin,
        finish_s=served.finish_s[1:] - begin,
        cached_tokens=served.cached_tokens[1:],
        end_s=served.end_s - begin,
    )
