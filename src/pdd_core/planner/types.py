"""What a planner is given and what it decides. Times are in seconds, speeds in tokens per second.

A planner decides three things for each answer: who makes it (`Verdict`), how many tokens the cloud decodes before
the device goes on (the decode budget, N), and which share of the prompt the device prefills (the refine ratio).
docs/planner.md has a worked example; the idea is that of arXiv 2508.09035.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import StrEnum

from pdd_core.errors import ConfigurationError

CLOSING_MARGIN = 0.15
"""A device stops the cloud early, once the tokens it has received last this share longer than the time that it
still needs to catch up."""


class Verdict(StrEnum):
    """Who makes an answer."""

    HANDOFF = "handoff"
    """A handoff: the cloud decodes the first tokens, the device the others."""
    CLOUD_ONLY = "cloud only"
    """The cloud makes the whole answer. The device stays idle, and steps in only if the cloud is lost."""
    DEVICE_ONLY = "device only"
    """The device makes the whole answer. The cloud steps in only if the device fails."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """The expected value of one quantity for the next request, such as a prefill rate, and how uncertain it is.

    Raises:
        ConfigurationError: a mean or deviation that is not finite, or a negative deviation.
    """

    mean: float
    """The expected value."""
    sd: float = 0.0
    """Standard deviation, in the unit of `mean`: how much requests differ, and how little is known yet. 0 means
    that the value is known exactly."""
    doubt: float = 0.0
    """Additional standard deviation of the value's logarithm, towards lower values. It is above 0 if the latest
    value was lower than expected: that may have been an outlier or a lasting change."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0 <= self.sd < math.inf and 0 <= self.doubt < math.inf):
            raise ConfigurationError(
                f"an estimate has a finite mean and deviations, not {self.mean}, {self.sd} and {self.doubt}"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRequest:
    """A request on the device, before the device sends or computes anything for it."""

    num_prompt_tokens: int
    """Tokens of the whole prompt."""
    num_held_tokens: int = 0
    """Tokens at the beginning of the prompt that the device has already processed, in an earlier turn."""
    num_held_whole_tokens: int | None = None
    """How many of the held tokens the device has processed in full, not as a refined prompt. A device that makes
    the answer alone can use only these, because it has no cloud tokens to check a refined prompt by. None: all of
    `num_held_tokens`."""
    max_tokens: int
    """The longest that the answer can get, in tokens."""
    rate: float
    """The most tokens per second at which the answer is shown; ``inf`` shows each token as it comes."""
    group: str = ""
    """App or tenant. The planner learns how long answers get for each group."""
    refine_ratio: float | None = None
    """Share of the prompt that the device prefills, if client or settings fix it. None: the planner chooses."""
    refinable: bool = False
    """True if the planner may choose a refined prompt."""
    verdict: Verdict | None = None
    """Who makes the answer, if the settings fix it. None: the planner chooses."""
    kv_cell_bytes: int | None = None
    """Bytes of one prompt token's cell of the KV cache, as the cloud sends it. None: there are none, or the
    settings forbid them."""
    kv_always: bool = False
    """True if the settings say that every handoff with the whole prompt uses cells. False: the planner chooses."""
    kv_metered: bool = False
    """True if bytes on the link cost the user money. The planner then chooses no cells by itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceState:
    """How fast the device is, for a prompt and an answer of about this request's length."""

    prefill_tps: Estimate
    """Prompt tokens that the device processes per second."""
    decode_tps: Estimate
    """Answer tokens that the device decodes per second."""
    n_ctx: int
    """Tokens of prompt and answer that the device's context holds."""
    wait_s: Estimate = Estimate(0.0)
    """Seconds until the device can begin, because it is at work for other answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudState:
    """How fast the cloud is, as measured by the device."""

    ttft_s: Estimate
    """Time from the request to the first token (TTFT), without the round trip `rtt_s`."""
    tpot_s: Estimate
    """Time from one token of an answer to the next (TPOT)."""
    rtt_s: Estimate
    """Time of one network round trip (RTT)."""
    refines: bool = False
    """True if the cloud makes refined prompts."""
    max_model_len: int | None = None
    """The most tokens of prompt and answer together that the cloud takes; None if this is not known."""
    available: bool = True
    """True if the cloud can be reached and takes requests now."""
    link_bps: Estimate | None = None
    """Goodput of the link while cells of the KV cache arrive, in bytes per second. None: not known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Goals:
    """The limits that a plan has to keep. The planner takes the plan that costs the cloud least within them.

    Raises:
        ConfigurationError: a value out of its range; the message names the field.
    """

    stall_probability: float = 0.01
    """Share of answers whose user may wait at the handoff, above 0 and below 1."""
    ttft_s: float = 0.5
    """Seconds within which an answer that the device makes alone has to begin."""
    qoe: float = 0.95
    """Expected quality of experience that an answer has to reach, 0 to 1: Andes' 1 - S_delay / S_whole."""
    must_begin_in_cloud: bool = False
    """True if every answer has to begin in the cloud, as long as there is a cloud."""
    lowest_ratio: float = 0.25
    """The smallest refine ratio that the planner chooses by itself."""

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
    """One plan that the planner looked at, and what to expect of it."""

    verdict: Verdict
    decode_budget: int | None = None
    """Tokens that the cloud may decode before the device goes on; None if it is not capped or has no part."""
    refine_ratio: float | None = None
    """Share of the prompt that the device prefills; None for all of it."""
    cost: float = 0.0
    """Expected cost in the cloud, in token-seconds: tokens in its KV cache times the seconds they stay there."""
    saved: float = 0.0
    """Expected share of the cloud's decode tokens that this plan saves."""
    stall_probability: float = 0.0
    """Probability that the user waits at the handoff."""
    ttft_s: float = 0.0
    """Expected time to the first token."""
    qoe: float = 1.0
    """Expected quality of experience."""
    rejected: str | None = None
    """The goal that this plan misses, in words; None if it keeps all goals."""
    kv: bool = False
    """True if the device loads the cloud's KV cache of the prompt."""
    kv_bytes: float = 0.0
    """Expected bytes of the KV cache that arrive. What they cost is part of `cost`."""

    def __str__(self) -> str:
        parts = [self.verdict.value]
        if self.decode_budget is not None:
            parts.append(f"N={self.decode_budget}")
        if self.refine_ratio is not None:
            parts.append(f"rho={self.refine_ratio:g}")
        if self.kv:
            parts.append(f"kv={self.kv_bytes / 1e6:.3g}MB")
        parts.append(f"cost={self.cost:.4g} stalls={self.stall_probability:.2g} ttft={self.ttft_s:.2g}s")
        return " ".join(parts) + (f" ({self.rejected})" if self.rejected else "")

    def as_json(self) -> dict[str, object]:
        """Return the alternative as JSON-ready values, floats rounded to four digits."""
        return {
            "verdict": self.verdict.value,
            "decode_budget": self.decode_budget,
            "refine_ratio": _short(self.refine_ratio),
            "kv": self.kv,
            "kv_bytes": _short(self.kv_bytes),
            "cost": _short(self.cost),
            "saved": _short(self.saved),
            "stall_probability": _short(self.stall_probability),
            "ttft_s": _short(self.ttft_s),
            "qoe": _short(self.qoe),
            "rejected": self.rejected,
        }


@dataclass(frozen=True, slots=True)
class Why:
    """Why a plan was chosen. It holds numbers and names only, no text of the prompt."""

    reason: str
    """One sentence: why this plan was chosen."""
    inputs: dict[str, float | int | str | bool | None] = field(default_factory=dict)
    """What the planner knew, by name."""
    alternatives: tuple[Alternative, ...] = ()
    """All plans that the planner looked at, the chosen one included."""

    def as_json(self) -> dict[str, object]:
        """Return the explanation as JSON-ready values."""
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
    """The decision for one request."""

    verdict: Verdict
    """Who makes the answer."""
    decode_budget: int | None = None
    """Tokens that the cloud may decode before the device goes on; None if it is not capped or has no part."""
    refine_ratio: float | None = None
    """Share of the prompt that the device prefills; None for all of it."""
    why: Why = field(default_factory=lambda: Why("a policy of its own"))
    """The explanation, for people. It goes into the `pdd` object of the answer and into the log."""
    kv: bool = False
    """True if the device is to load the cloud's KV cache of the prompt, as far as it arrives in time."""


def _short(value: float | None) -> float | None:
    """Return `value` rounded to four digits; None for what JSON has no number for."""
    if value is None or not math.isfinite(value):
        return None
    return float(f"{value:.4g}")
