"""What a planner is given and what it decides. Times in seconds, speeds in tokens per second."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from pdd_core.errors import ConfigurationError

CLOSING_MARGIN = 0.15
"""Share of time to spare with which a device closes the cloud early, once what is at hand lasts until it is
ready."""


class Verdict(StrEnum):
    """Who makes an answer."""

    HANDOFF = "handoff"
    """The cloud begins, the device goes on."""
    CLOUD_ONLY = "cloud only"
    """The cloud makes all of it; the device stays idle, and steps in only if the cloud is lost."""
    DEVICE_ONLY = "device only"
    """The device makes all of it; the cloud steps in only if the device fails."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What is believed of one quantity, for the next request."""

    mean: float
    """The value that is expected."""
    sd: float = 0.0
    """Standard deviation of the next request's value: what requests differ by, and what is not known yet."""
    doubt: float = 0.0
    """Standard deviation of the logarithm by which the next value may be lower besides: the latest one was, which
    may have been a hiccup or a change."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 <= self.sd < math.inf and 0 <= self.doubt < math.inf):
            raise ConfigurationError(
                f"an estimate has a finite mean and deviations, not {self.mean}, {self.sd} and {self.doubt}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A request on the device, before anything is sent or computed for it."""

    num_prompt_tokens: int
    """Tokens of the whole prompt."""
    num_held_tokens: int = 0
    """The beginning of the prompt that the device holds already, from an earlier turn."""
    num_held_whole_tokens: int | None = None
    """Of its beginning, what the device holds as it is, and not a refined prompt in its place: a device alone goes
    on from no more, since nobody could judge the rest. None: all of `num_held_tokens`."""
    max_tokens: int
    """The longest the answer can get."""
    rate: float
    """Tokens per second at which the answer is shown at most; ``inf`` shows each as it comes."""
    group: str = ""
    """App or tenant: whose answers tell how long this one may get."""
    refine_ratio: float | None = None
    """Share of the prompt that the device reads, where client or setting fix it; None leaves it to the planner."""
    refinable: bool = False
    """Whether the planner may choose a refined prompt."""
    verdict: Verdict | None = None
    """Where the settings fix it; None leaves it to the planner."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """The device, for a prompt and an answer of about this request's length."""

    prefill_tps: Estimate
    """Prompt tokens that it reads in a second."""
    decode_tps: Estimate
    """Tokens that it makes in a second."""
    n_ctx: int
    """Tokens that its context holds."""
    wait_s: Estimate = Estimate(0.0)
    """Before it can begin: it makes one answer at a time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudState:
    """The cloud, as the device sees it."""

    ttft_s: Estimate
    """From the request to the first token's arrival, without the round trip `rtt_s`."""
    tpot_s: Estimate
    """Between two tokens of one answer."""
    rtt_s: Estimate
    """One round trip."""
    refines: bool = False
    """Whether it makes refined prompts."""
    max_model_len: int | None = None
    """Tokens of the longest prompt and answer that it takes; None where that is not known."""
    available: bool = True
    """Whether it would answer now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """What a plan has to keep to.

    Raises:
        ConfigurationError: a value out of its range; the message names the field.
    """

    stall_probability: float = 0.01
    """Share of answers that may stall, above 0 and below 1."""
    ttft_s: float = 0.5
    """Seconds within which an answer has to begin where the device makes all of it."""
    qoe: float = 0.95
    """Quality of experience that an answer has to be expected to reach, 0 to 1: Andes' 1 - S_delay / S_whole."""
    must_begin_in_cloud: bool = False
    """Whether every answer begins in the cloud, while there is one."""
    lowest_ratio: float = 0.25
    """The smallest share of a prompt that the planner keeps by its own choice."""

    def __post_init__(self) -> None:
        for name, holds, rule in (
            ("stall_probability", 0 < self.stall_probability < 1, "above 0 and below 1"),
            ("ttft_s", self.ttft_s > 0, "positive"),
            ("qoe", 0 <= self.qoe <= 1, "from 0 to 1"),
            ("lowest_ratio", 0 < self.lowest_ratio <= 1, "above 0 and at most 1"),
        ):
            if not holds:
                raise ConfigurationError(f"{name} must be {rule}, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alternative:
    """One plan that was looked at."""

    verdict: Verdict
    decode_budget: int | None = None
    refine_ratio: float | None = None
    cost: float = 0.0
    """Expected cloud token-seconds."""
    saved: float = 0.0
    """Expected share of the cloud's decode tokens that is saved."""
    stall_probability: float = 0.0
    ttft_s: float = 0.0
    """Expected time to the first token."""
    qoe: float = 1.0
    """Expected quality of experience."""
    rejected: str | None = None
    """The goal that it misses; None where it keeps all."""

    def __str__(self) -> str:
        parts = [self.verdict.value]
        if self.decode_budget is not None:
            parts.append(f"N={self.decode_budget}")
        if self.refine_ratio is not None:
            parts.append(f"rho={self.refine_ratio:g}")
        parts.append(f"cost={self.cost:.4g} stalls={self.stall_probability:.2g} ttft={self.ttft_s:.2g}s")
        return " ".join(parts) + (f" ({self.rejected})" if self.rejected else "")

    def as_json(self) -> dict[str, object]:
        """Return it with short numbers, ready for JSON."""
        return {
            "verdict": self.verdict.value,
            "decode_budget": self.decode_budget,
            "refine_ratio": _short(self.refine_ratio),
            "cost": _short(self.cost),
            "saved": _short(self.saved),
            "stall_probability": _short(self.stall_probability),
            "ttft_s": _short(self.ttft_s),
            "qoe": _short(self.qoe),
            "rejected": self.rejected,
        }


@dataclass(frozen=True, slots=True)
class Why:
    """How a decision came about. Numbers and names only, nothing of the prompt."""

    reason: str
    """One sentence: why the winner won."""
    inputs: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    """What the decision went by."""
    alternatives: tuple[Alternative, ...] = ()
    """The plans that were looked at."""

    def as_json(self) -> dict[str, object]:
        """Return it ready for JSON."""
        inputs = {
            name: _short(value) if isinstance(value, float) else value for name, value in self.inputs.items()
        }
        return {
            "reason": self.reason,
            "inputs": inputs,
            "alternatives": [one.as_json() for one in self.alternatives],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done with one request."""

    verdict: Verdict
    """Who makes the answer."""
    decode_budget: int | None = None
    """Tokens that the cloud may decode; None where it is not capped, or has no part."""
    refine_ratio: float | None = None
    """Share of the prompt that the device reads; None for all of it."""
    why: Why = field(default_factory=lambda: Why("a policy of its own"))
    """For people: it goes into the answer's `pdd` object and the log."""


def _short(value: float | None) -> float | None:
    """Return `value` to four digits; JSON has no infinity."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")
