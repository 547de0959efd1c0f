"""The base formula of a handoff: how many tokens the cloud decodes so that nobody waits for the device."""

from __future__ import annotations

import math


def break_even_budget(prompt_tokens: int, *, rate: float, prefill_tps: float, headroom: float) -> int | None:
    """Return how many tokens the cloud should decode so that the user never waits for the device.

    The device processes the L prompt tokens and the N received ones at p tokens per second, while the latter are
    shown at r: (L + N) / p = N / r gives N = r L / (p - r). `headroom` multiplies it. The device takes over as
    soon as it has caught up, so a budget that is too large costs the cloud a few tokens, one too small a stall.

    Args:
        prompt_tokens: tokens that the device has to process, without those that it holds already.
        rate: tokens per second at which the answer is shown.
        prefill_tps: the device's prefill, tokens per second.
        headroom: at least 1; for a device a little slow.

    Returns None when the device prefills no faster than the answer is shown: it never catches up.
    """
    if prefill_tps <= rate:
        return None
    return max(1, math.ceil(headroom * math.ceil(rate * prompt_tokens / (prefill_tps - rate))))
