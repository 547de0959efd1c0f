"""Built-in pacing: the speed controller and its simpler alternatives, each an implementation of ``pdd_pace``.

A pacer decides *when* the next token may be shown, never *which*. The token loop calls it directly, once per token
and once more for every change while the token waits; the hook ``pdd_pace`` only makes it, once per request.

All but `Unlimited` keep to the target rate until the answer is complete, then show what is left within
`PaceTarget.flush_within`. All pass every token through when the target rate is ``inf``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.policies.pacing.adaptive import Adaptive, AdaptivePacing
from pdd_core.policies.pacing.ewma import Ewma, EwmaPacing
from pdd_core.policies.pacing.fixed import FixedRate, FixedRatePacing
from pdd_core.policies.pacing.reading import ReadingSpeedPacing
from pdd_core.policies.pacing.unlimited import Unlimited, UnlimitedPacing

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BUILT_IN: Mapping[str, Callable[[], object]] = {
    "adaptive": AdaptivePacing,
    "fixed": FixedRatePacing,
    "ewma": EwmaPacing,
    "reading": ReadingSpeedPacing,
    "unlimited": UnlimitedPacing,
}
"""Name -> plugin class; the first is the default."""

__all__ = [
    "BUILT_IN",
    "Adaptive",
    "AdaptivePacing",
    "Ewma",
    "EwmaPacing",
    "FixedRate",
    "FixedRatePacing",
    "ReadingSpeedPacing",
    "Unlimited",
    "UnlimitedPacing",
]
