"""Time limits and retry budgets of one answer."""

from __future__ import annotations

from dataclasses import dataclass, fields

from pdd_core.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for cloud and device, in seconds, and how often to ask again.

    Raises:
        ConfigurationError: a negative value; the message names the field.
    """

    first_token_s: float = 10.0
    """A device that is ready waits this long for the cloud's first token."""
    standby_s: float = 2.0
    """Where the cloud makes an answer alone, this long without a token makes the device get ready, and step in
    once it is. A device that cannot keep the answer's pace steps in after `first_token_s` without a token."""
    cloud_silence_s: float = 30.0
    """A stream without a token for this long is lost. Before the first token, `cloud_prefill_s` counts."""
    cloud_prefill_s: float = 180.0
    """The longest wait for a leg's first token where no device is ready: queue and prefill of a long prompt."""
    cells_silence_s: float = 5.0
    """A stream of the cloud's KV cache without a byte for this long is lost, and asked for again."""
    device_step_s: float = 60.0
    """One call of llama.cpp, a chunk of the prompt or one token, that takes this long counts as hung."""
    cloud_retries: int = 2
    """Further attempts after the cloud was lost, refused for the moment, or could not be reached."""
    retry_delay_s: float = 0.5
    """Before the first of these attempts; doubled for each one after it."""
    max_extensions: int = 4
    """Further budgets to ask for while the device is late; then the cloud may finish, uncapped."""
    late_s: float = 0.25
    """A wait for the device that is shorter than this is no reason to ask; ``inf`` always waits for the device."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if getattr(self, field.name) < 0:
                raise ConfigurationError(f"{field.name} must not be negative")
