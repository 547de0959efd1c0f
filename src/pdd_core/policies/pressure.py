"""How hard pressed a server is, in a few levels that do not flap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_core.hookspecs import CloudLoad


@dataclass(frozen=True, slots=True)
class PressureSettings:
    """When a level begins and ends."""

    levels: tuple[float, ...] = (0.8, 0.9, 1.0)
    """Utilisations, increasing, at which the levels begin."""
    hysteresis: float = 0.15
    """A level ends this far below where it began."""
    relax_s: float = 1.0
    """Seconds for which the utilisation must stay there before one level is given up."""
    patience_s: float = 1.0
    """Seconds of waiting in line that count as full utilisation."""


def utilisation(load: CloudLoad, patience_s: float) -> float:
    """Return the share of the scarcest resource in use; 1 and more where requests wait for it.

    The scarcest of: places in the batch, KV blocks, and, as prefill work has no measure of its own, the time that
    the next request in line has waited.
    """
    slots = (load.running + load.waiting) / load.capacity if load.capacity else 0.0
    return max(slots, load.kv_cache_usage, load.waited_s / patience_s)


class PressureGauge:
    """Follows one server's utilisation. Rises at once, falls one level at a time.

    Every `observe` costs the same few operations, so it can be called in each step.
    """

    def __init__(self, settings: PressureSettings) -> None:
        self._settings = settings
        self._below_since: float | None = None
        self.level = 0
        """0 is relaxed; the highest is the number of `levels`."""

    @property
    def pressure(self) -> float:
        """The level as a share of the highest, 0 to 1."""
        return self.level / len(self._settings.levels)

    def restart(self, load: CloudLoad) -> None:
        """Begin anew: nobody has looked for a while."""
        self.level = self._reached(utilisation(load, self._settings.patience_s))
        self._below_since = None

    def observe(self, load: CloudLoad, now: float) -> bool:
        """Take in the load at `now`, seconds of a monotonic clock. Returns whether the level changed."""
        settings = self._settings
        used = utilisation(load, settings.patience_s)
        reached = self._reached(used)
        if reached > self.level:
            self.level, self._below_since = reached, None
            return True
        if self.level == 0 or used >= settings.levels[self.level - 1] - settings.hysteresis:
            self._below_since = None
            return False
        if self._below_since is None:
            self._below_since = now
        if now - self._below_since < settings.relax_s:
            return False
        self.level, self._below_since = self.level - 1, now
        return True

    def _reached(self, used: float) -> int:
        return sum(used >= begin for begin in self._settings.levels)
