"""The plugin's settings: ``--additional-config '{"pdd": {...}}'``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Self

from pdd_core.env import Env
from pdd_core.errors import ConfigurationError
from pdd_core.optin import MAX_DECODE_BUDGET
from pdd_core.refinement.capture import CAPTURE_DEPTHS, CAPTURE_HEADS, CAPTURE_WINDOW, HEADS, Heads

KEY = "pdd"
REFINE = ("auto", "off", "attention", "lexical", "truncation", "random")
"""Values of `refine`. ``auto`` is attention where ``--worker-cls`` names `PDDWorker`, else off."""


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
    refine: str = "auto"
    """Where refined prompts come from: auto, off, attention, lexical, truncation or random."""
    refine_window: int = CAPTURE_WINDOW
    """How many of the prompt's last tokens say what matters: those whose attention is captured."""
    refine_layers: tuple[float, ...] = CAPTURE_DEPTHS
    """Depths of the captured layers, as shares of the model's depth. Each costs time and little memory."""
    refine_heads: Heads = CAPTURE_HEADS
    """How a layer's heads are made one: the attention of the head that cares most, or of the mean."""
    refine_max_prompt_tokens: int = 131_072
    """Longer prompts are not refined: a bound on memory and on the time of a request."""
    strict: bool = False
    """Refuse to start with a policy plugin that cannot be loaded; log each failure in a request as an error."""

    def __post_init__(self) -> None:
        if not isinstance(self.strict, bool):
            raise _invalid("strict", "true or false", self.strict)
        for name, values in (("refine", REFINE), ("refine_heads", HEADS)):
            if getattr(self, name) not in values:
                raise _invalid(name, f"one of {', '.join(values)}", getattr(self, name))
        depths = self.refine_layers
        if not isinstance(depths, list | tuple) or not depths or not all(map(_is_depth, depths)):
            raise _invalid("refine_layers", "a list of numbers from 0 to below 1", depths)
        object.__setattr__(self, "refine_layers", tuple(depths))
        for field in fields(self):
            value = getattr(self, field.name)
            # bool passes for a number in Python, and never is one here
            if isinstance(field.default, int | float) and not isinstance(field.default, bool):
                wanted = int if isinstance(field.default, int) else (int, float)
                if isinstance(value, bool) or not isinstance(value, wanted) or value <= 0:
                    raise _invalid(field.name, "above 0", value)

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


def _is_depth(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 1


def _invalid(name: str, wanted: str, value: object) -> ConfigurationError:
    return ConfigurationError(f"additional_config.pdd.{name} must be {wanted}, not {value!r}")
