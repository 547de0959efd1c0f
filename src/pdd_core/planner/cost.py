"""What a request costs the cloud, in token-seconds: the tokens that it holds in the KV cache times how long."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdd_core.planner.profiles import MeasuredCloud

PREFILL_WEIGHT = 10.0
"""Token-seconds of one prefilled token, where no cloud profile tells: an engine that holds 400,000 tokens and
prefills 40,000 a second. See `prefill_weight`."""

GPU_HOUR_PRICE = 3.0
"""Of one GPU of a data centre, in dollars: a round figure."""
KV_TOKENS = 400_000
"""Tokens that an engine's KV cache holds, where no cloud profile tells: those of `PREFILL_WEIGHT`."""


@dataclass(frozen=True, slots=True)
class Weights:
    """What else costs the cloud or the user, in token-seconds."""

    prefill: float = PREFILL_WEIGHT
    """Of one token that the cloud prefills; see `prefill_weight`."""
    byte: float = 0.0
    """Of one byte of a cell that the cloud sends; see `byte_weight`."""


def byte_weight(price_per_gb: float, gpu_hour_price: float, kv_tokens: int) -> float:
    """Return the token-seconds that one byte from the cloud costs.

    An hour of the engine is `kv_tokens` times 3,600 token-seconds, and costs `gpu_hour_price`.

    Args:
        price_per_gb: of 10^9 bytes, in the currency of `gpu_hour_price`.
        gpu_hour_price: of one engine.
        kv_tokens: tokens that its KV cache holds.
    """
    return price_per_gb / 1e9 * kv_tokens * 3600.0 / gpu_hour_price


def prefill_weight(profile: MeasuredCloud) -> float:
    """Return the token-seconds that prefilling one token costs: all the KV cache waits while it is computed."""
    return profile.kv_tokens * profile.per_prefill_token_s


def decode_cost(prompt_tokens: Any, decoded: Any, squared: Any, *, tpot_s: Any) -> Any:
    """Return the token-seconds of a request's decoding.

    The k-th token holds the prompt and k tokens for one step: ``tpot * sum(L + k)`` over `decoded` tokens. For
    numbers and for arrays.

    Args:
        prompt_tokens: L.
        decoded: tokens that the cloud decodes, or their expectation.
        squared: their square, or its expectation.
        tpot_s: seconds of one step.
    """
    return tpot_s * (prompt_tokens * decoded + (squared + decoded) / 2)
