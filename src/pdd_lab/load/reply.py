"""What one request came to, as its client saw it. Filled while it runs, so that a run can be cut short."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pdd_core.timeline import Source


@dataclass(slots=True)
class Reply:
    """One request. Times are seconds on one clock, the same for all requests of a run."""

    index: int
    due: float
    """When it should have been sent: latencies count from here, so that a client that is late hides nothing."""
    prompt_tokens: int
    sent: float | None = None
    token_times: list[float] = field(default_factory=list)
    """Arrival of each token that was seen; those of one event came at once."""
    finished: float | None = None
    """When the answer was complete."""
    finish_reason: str | None = None
    usage_tokens: int | None = None
    """Tokens of the answer by the server's own count: some have no text, and are not seen."""
    error: str | None = None
    """A short name of what went wrong, the same for the same cause."""
    detail: str | None = None
    """The error in the server's words."""
    pdd: dict[str, Any] | None = None
    """What a local server tells about the answer."""

    @property
    def ok(self) -> bool:
        """Whether the answer is complete."""
        return self.finished is not None and self.error is None

    @property
    def tokens(self) -> int:
        """Tokens of the answer."""
        return len(self.token_times) if self.usage_tokens is None else self.usage_tokens

    @property
    def ttft(self) -> float | None:
        """Seconds from when it was due to its first token; None without one."""
        return self.token_times[0] - self.due if self.token_times else None

    @property
    def late(self) -> float:
        """Seconds by which it was sent too late."""
        return 0.0 if self.sent is None else max(0.0, self.sent - self.due)

    def shown(self) -> list[float]:
        """Return the arrival of each token, seconds since it was due."""
        return [at - self.due for at in self.token_times]

    def by_source(self) -> dict[Source, int]:
        """Return the tokens that each engine made; a server that does not tell is a cloud."""
        if self.pdd is None:
            return {Source.CLOUD: self.tokens, Source.DEVICE: 0}
        told = self.pdd.get("tokens", {})
        return {source: int(told.get(source.value, 0)) for source in Source}

    @property
    def mode(self) -> str:
        """Which engines made the answer, as one of the modes of an `Outcome`; of one that failed, the cloud's."""
        counts = self.by_source()
        if not counts[Source.DEVICE]:
            return "cloud_only"
        return "handoff" if counts[Source.CLOUD] else "device_only"
