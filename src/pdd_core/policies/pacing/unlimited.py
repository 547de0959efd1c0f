"""No pacing: each token as it comes."""

from __future__ import annotations

from typing import Any

from pdd_core.hookspecs import Pacer, hookimpl


class Unlimited:
    """Passes every token through."""

    def due(self, now: float, **_: Any) -> float:
        """Return `now`."""
        return now


class UnlimitedPacing:
    """Built-in implementation of ``pdd_pace``: passes through, whatever the target rate."""

    @hookimpl(trylast=True)
    def pdd_pace(self) -> Pacer:
        """Return a pacer that never waits."""
        return Unlimited()
