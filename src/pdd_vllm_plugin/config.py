"""The plugin's settings: ``--additional-config '{"pdd": {...}}'``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from pdd_core.env import Env
from pdd_core.errors import ConfigurationError
from pdd_core.optin import MAX_DECODE_BUDGET

KEY = "pdd"


@dataclass(frozen=True, slots=True)
class PDDConfig:
    """Server-wide settings. Every one has a default that serves."""

    default_decode_budget: int = 64
    """Tokens granted to an opted-in request that names no budget."""
    max_decode_budget: int = MAX_DECODE_BUDGET
    """Ceiling on any budget, whoever asks."""
    max_handoffs: int = 1024
    """Handoff states kept at once; the oldest ended one goes first."""
    max_state_tokens: int = 16_000_000
    """Bound on what all states hold together, in token ids of 4 bytes; text and logprobs count as so many."""
    ttl_s: float = 600.0
    """Seconds for which a state can be read after its request has ended."""
    cancel_timeout_s: float = 10.0
    """Longest wait for the engine's confirmation of a DELETE: the rest of its running step."""
    strict: bool = False
    """Refuse to start with a policy plugin that cannot be loaded; log each failure in a request as an error."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "strict":
                if not isinstance(value, bool):
                    raise ConfigurationError(f"additional_config.pdd.strict must be true or false, not {value!r}")
                continue
            # bool passes for a number in Python, and never is one here
            wanted = int if isinstance(field.default, int) else (int, float)
            if isinstance(value, bool) or not isinstance(value, wanted) or value <= 0:
                raise ConfigurationError(f"additional_config.pdd.{field.name} must be above 0, not {value!r}")

    @classmethod
    def from_vllm(cls, vllm_config: Any) -> Self:
        """Read the settings out of vLLM's ``VllmConfig.additional_config``.

        Raises:
            ConfigurationError: a setting is unknown or out of range.
        """
        additional = vllm_config.additional_config
        given = additional.get(KEY, {}) if isinstance(additional, dict) else {}
        known = [field.name for field in fields(cls)]
        for name in given:
            if name not in known:
                raise ConfigurationError(f"additional_config.pdd.{name} is unknown; known: {', '.join(known)}")
        return cls(**{"strict": Env().strict, **given})
