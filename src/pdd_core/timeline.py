"""What the user saw and when: one record per shown token, and the figures made from them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from itertools import pairwise


class Source(StrEnum):
    """The engine that made a token."""

    CLOUD = "cloud"
    DEVICE = "device"


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """One token and the natural logarithm of its probability, before temperature, penalties and logit bias.

    Where a grammar constrains the answer, only among the tokens it allows (as in vLLM): minus infinity for others.
    """

    token_id: int
    logprob: float


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """What one step of an answer knew: the chosen token's logprob, and the most likely tokens', best first."""

    chosen: TokenLogprob
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class ShownToken:
    """One token of the answer, at the moment it is shown."""

    index: int
    token_id: int
    text: str
    """What this token adds to the text; empty inside a multi-byte character, for control tokens, and while the
    text could be the beginning of a stop string. Text that waited comes with a later token."""
    source: Source
    received_at: float
    """Seconds since the request began: arrival from the cloud, or made on the device."""
    shown_at: float
    """Seconds since the request began."""
    logprobs: TokenLogprobs | None = None
    """None unless the request asked for them."""


@dataclass(slots=True)
class Timeline:
    """Collects shown tokens; figures follow the serving literature's definitions."""

    tokens: list[ShownToken] = field(default_factory=list)

    def count(self, source: Source) -> int:
        """Tokens made by `source`."""
        return sum(token.source is source for token in self.tokens)

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(token.text for token in self.tokens)

    @property
    def ttft(self) -> float | None:
        """Time to first token, seconds; None before it."""
        return self.tokens[0].shown_at if self.tokens else None

    @property
    def gaps(self) -> list[float]:
        """Seconds between each shown token and the next."""
        return [later.shown_at - earlier.shown_at for earlier, later in pairwise(self.tokens)]

    @property
    def tpot_mean(self) -> float | None:
        """Mean gap, seconds; None with fewer than two tokens."""
        gaps = self.gaps
        return sum(gaps) / len(gaps) if gaps else None

    @property
    def tpot_max(self) -> float | None:
        """Longest gap, seconds; None with fewer than two tokens."""
        return max(self.gaps, default=None)
