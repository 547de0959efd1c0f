"""One request, in vLLM's own names."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError
from pdd_core.optin import MAX_DECODE_BUDGET

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRequest:
    """A prompt and how to go on from it. Names and meanings are those of vLLM's ``SamplingParams``.

    Raises:
        ConfigurationError: a value that neither engine could obey; the message names the field.
    """

    prompt_token_ids: Sequence[int]
    """The whole prompt as ids, special tokens included. Never text: the engines may split text differently."""
    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or -1 keeps all."""
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: int = 0
    """No stop token before the answer has this many tokens."""
    stop_token_ids: Sequence[int] = ()
    """Tokens that end the answer, besides the model's own end of sequence."""
    decode_budget: int | None = 64
    """Tokens the cloud may decode before it hands off; None leaves it to the cloud's policy."""
    cache_salt: str | None = None
    """Keeps the cloud's prefix cache apart from that of other salts."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "prompt_token_ids", tuple(self.prompt_token_ids))
        object.__setattr__(self, "stop_token_ids", tuple(self.stop_token_ids))
        _require(bool(self.prompt_token_ids), "prompt_token_ids", "must not be empty")
        _require(self.max_tokens >= 1, "max_tokens", "must be at least 1")
        _require(0 <= self.temperature < math.inf, "temperature", "must be 0 or a positive number")
        _require(0 < self.top_p <= 1, "top_p", "must be above 0 and at most 1")
        _require(self.top_k >= -1, "top_k", "must be -1 or more")
        _require(0 <= self.min_p <= 1, "min_p", "must be from 0 to 1")
        _require(-2 <= self.presence_penalty <= 2, "presence_penalty", "must be from -2 to 2")
        _require(-2 <= self.frequency_penalty <= 2, "frequency_penalty", "must be from -2 to 2")
        _require(0 < self.repetition_penalty < math.inf, "repetition_penalty", "must be a positive number")
        _require(0 <= self.min_tokens <= self.max_tokens, "min_tokens", "must be from 0 to max_tokens")
        budget = self.decode_budget
        _require(budget is None or 1 <= budget <= MAX_DECODE_BUDGET, "decode_budget", "must be None or at least 1")


def _require(holds: bool, field: str, rule: str) -> None:
    if not holds:
        raise ConfigurationError(f"{field} {rule}")
