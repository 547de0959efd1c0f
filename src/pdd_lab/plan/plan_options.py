"""What `pdd-device plan` is asked, put into the simulator's terms."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pdd_cli.options import check_number
from pdd_core.errors import ConfigurationError
from pdd_core.planner.cost import GPU_HOUR_PRICE
from pdd_core.planner.profiles import RatePoint
from pdd_core.planner.types import Goals
from pdd_lab.plan.builtin import cloud_profile, device_profile, trace
from pdd_lab.simulator.cell_link import cell_link
from pdd_lab.simulator.evaluation import FIXED
from pdd_lab.simulator.trace_scenario import Scenario
from pdd_lab.traces import AS_ITS_FIELDS_SAY

if TYPE_CHECKING:
    from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice
    from pdd_lab.traces import Trace, TraceOptions

NAMED = ("planner", "best_fixed", "oracle", "plain")
"""Policies besides ``fixed_N``."""
_LONGEST_BY_DEFAULT = 1024
_FASTEST = 1e6
"""Tokens per second that anybody wants to see."""
_LONGEST_MS = 1e6
"""A quarter of an hour: nobody waits longer for a round trip, or for a first token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanOptions:
    """The flags of the command. None leaves a value to the profiles.

    Raises:
        ConfigurationError: a number out of its range.
    """

    trace: str
    device: str
    cloud: str
    trace_options: TraceOptions = AS_ITS_FIELDS_SAY
    requests: int | None = None
    policy: str = "planner"
    rate: float = 20.0
    ratio: str | None = None
    device_prefill_tps: float | None = None
    noise: float | None = None
    rtt_ms: float | None = None
    jitter_ms: float | None = None
    stall_probability: float = 0.01
    ttft_target: float = 0.5
    must_begin_in_cloud: bool = False
    max_tokens: int | None = None
    kv: str = "off"
    link: str | None = None
    kv_cell_bytes: int | None = None
    kv_price_per_gb: float = 0.0
    gpu_hour_price: float = GPU_HOUR_PRICE
    seed: int = 0

    def __post_init__(self) -> None:
        for flag, value, least, most in (
            ("--rate", self.rate, 0.1, _FASTEST),
            ("--device-prefill-tps", self.device_prefill_tps, 0.1, 1e9),
            ("--noise", self.noise, 0.0, 5.0),
            ("--rtt-ms", self.rtt_ms, 0.0, _LONGEST_MS),
            ("--jitter-ms", self.jitter_ms, 0.0, _LONGEST_MS),
            ("--ttft-target", self.ttft_target, 1e-6, _LONGEST_MS / 1000),
            ("--kv-price-per-gb", self.kv_price_per_gb, 0.0, 1e9),
            ("--gpu-hour-price", self.gpu_hour_price, 1e-9, 1e9),
        ):
            check_number(flag, value, least, most)
        if self.kv not in ("off", "auto", "always"):
            raise ConfigurationError(f"--kv {self.kv} is none of off, auto, always")

    def scenario(self) -> Scenario:
        """Return the question to the simulator.

        Raises:
            ConfigurationError: a name that does not exist, or a value out of its range.
        """
        requests = trace(self.trace, self.trace_options, requests=self.requests)
        if self.max_tokens is not None:
            requests = requests.shorter(self.max_tokens)
        cloud = self._cloud()
        return Scenario(
            trace=requests,
            device=self._device(),
            cloud=cloud,
            rate=self.rate,
            goals=Goals(
                stall_probability=self.stall_probability,
                ttft_s=self.ttft_target,
                must_begin_in_cloud=self.must_begin_in_cloud,
            ),
            refine_ratio=self._ratio(),
            max_tokens=self.max_tokens or _longest(requests),
            seed=self.seed,
            link=None
            if self.kv == "off"
            else cell_link(
                cloud,
                self.link,
                cell_bytes=self.kv_cell_bytes,
                always=self.kv == "always",
                price_per_gb=self.kv_price_per_gb,
                gpu_hour_price=self.gpu_hour_price,
            ),
        )

    @property
    def budgets(self) -> tuple[int, ...]:
        """Fixed budgets to compare with, the one that `policy` names among them.

        Raises:
            ConfigurationError: `policy` is none that there is.
        """
        if self.policy in NAMED:
            return FIXED
        named = fixed_budget(self.policy)
        if named is None:
            raise ConfigurationError(f"--policy {self.policy} is none of {', '.join(NAMED)}, fixed_N")
        return tuple(sorted({*FIXED, named}))

    def _device(self) -> MeasuredDevice:
        profile = device_profile(self.device)
        changes: dict[str, Any] = {}
        if self.device_prefill_tps is not None:
            changes["prefill_tps"] = (RatePoint(at=0, value=self.device_prefill_tps),)
        if self.noise is not None:
            changes["spread"] = self.noise
        return profile.model_copy(update=changes)

    def _cloud(self) -> MeasuredCloud:
        profile = cloud_profile(self.cloud)
        changes: dict[str, Any] = {}
        if self.rtt_ms is not None:
            changes |= {"rtt_s": self.rtt_ms / 1000, "jitter_s": self.rtt_ms / 1000}
        if self.jitter_ms is not None:
            changes["jitter_s"] = self.jitter_ms / 1000
        return profile.model_copy(update=changes)

    def _ratio(self) -> float | None:
        """Return the share of the prompt to read, None for the planner's choice."""
        text = self.ratio
        if text is None:
            return None if self._cloud().refines else 1.0
        if text == "auto":
            return None
        try:
            ratio = float(text)
        except ValueError:
            ratio = 0.0
        if not 0 < ratio <= 1:
            raise ConfigurationError(f"--ratio {text} is neither auto nor a share above 0 and up to 1")
        return ratio


def fixed_budget(policy: str) -> int | None:
    """Return the N of a policy ``fixed_N``; None for any other."""
    named = re.fullmatch(r"fixed_([1-9][0-9]{0,6})", policy)
    return int(named[1]) if named else None


def _longest(requests: Trace) -> int:
    """Return the limit that clients are taken to set: a power of two that no answer of the trace exceeds."""
    longest = _LONGEST_BY_DEFAULT
    while longest < int(requests.output_tokens.max()):
        longest *= 2
    return longest
