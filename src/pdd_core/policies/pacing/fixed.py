"""A fixed rate."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from pdd_core.hookspecs import Pacer, hookimpl
from pdd_core.policies.pacing.base import SteadyPacer
from pdd_core.policies.pacing.unlimited import Unlimited

if TYPE_CHECKING:
    from pdd_core.hookspecs import PaceTarget


class FixedRate(SteadyPacer):
    """At most the target rate, whatever is to come.

    As fast as tokens may be shown, so it keeps gaps of 1 / rate if anything can; longer stalls it does not soften.
    """

    def gap(self, now: float, **_: Any) -> float:  # noqa: ARG002
        """Return the gap of the target rate."""
        return self.least


class FixedRatePacing:
    """Built-in implementation of ``pdd_pace``."""

    @hookimpl(trylast=True)
    def pdd_pace(self, target: PaceTarget) -> Pacer:
        """Return a pacer at the user's target rate."""
        return Unlimited() if math.isinf(target.rate) else FixedRate(target)
