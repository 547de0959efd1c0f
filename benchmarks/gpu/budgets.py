"""How many tokens the cloud decodes for a prompt: the base formula of the planner, without head-room."""

import math

from pdd_core.break_even import break_even_budget

PREFILL_TPS = 1000.0
"""The device's, of the published figures."""
SHOWN_TPS = 20.0


def planner_budget(
    prompt_tokens: int, *, ratio: float = 1.0, prefill_tps: float = PREFILL_TPS, rate: float = SHOWN_TPS
) -> int:
    """Return ``N = ceil(r * ratio * L / (p - r))``, at least 1: no token in vain, and none waited for.

    Args:
        prompt_tokens: L.
        ratio: the share of the prompt that the device reads.
        prefill_tps: p, the device's prefill in tokens per second.
        rate: r, tokens per second shown.
    """
    budget = break_even_budget(math.ceil(ratio * prompt_tokens), rate=rate, prefill_tps=prefill_tps, headroom=1.0)
    if budget is None:
        raise ValueError(f"a device that prefills {prefill_tps} tokens/s never catches up with {rate} shown")
    return budget
