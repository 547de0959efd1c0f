"""How much answers that are made at the same time slow each other down: for plans, and for what is learnt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Sharing:
    """Of one engine, as its probe at the start has found it."""

    slots: int
    """Answers at the same time."""
    together: float = 1.0
    """A step of all slots takes so many times as long as a step of one."""

    def slowdown(self, answers: int) -> float:
        """Return how many times as long a step takes if `answers` have a part in it."""
        if self.slots == 1:
            return 1.0
        return 1.0 + (self.together - 1.0) * (min(answers, self.slots) - 1) / (self.slots - 1)
