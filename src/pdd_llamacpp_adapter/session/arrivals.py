"""When the tokens of one leg of the cloud's came."""

from __future__ import annotations

from dataclasses import dataclass

_LEAST_LATER = 4
"""Tokens behind the first that tell how fast they come."""


@dataclass(slots=True)
class Arrivals:
    """When the tokens of one leg came; seconds since the request began."""

    posted_at: float | None = None
    first_at: float | None = None
    last_at: float = 0.0
    later: int = 0
    """Tokens that came behind the first event."""

    def came(self, tokens: int, now: float) -> None:
        """Record one event."""
        if not tokens:
            return
        if self.first_at is None:
            self.first_at = now
        else:
            self.later += tokens
        self.last_at = now

    @property
    def first_token_s(self) -> float | None:
        """From the request to the first token; None before it."""
        if self.posted_at is None or self.first_at is None:
            return None
        return self.first_at - self.posted_at

    @property
    def step_s(self) -> float | None:
        """Mean time between two tokens; None while they are too few to tell."""
        if self.first_at is None or self.later < _LEAST_LATER:
            return None
        return (self.last_at - self.first_at) / self.later
