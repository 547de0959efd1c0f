"""What became of one answer."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_core.timeline import Timeline


class Mode(StrEnum):
    """Which engines the session was given. What each did is in the timeline."""

    HANDOFF = "handoff"
    DEVICE_ONLY = "device_only"
    CLOUD_ONLY = "cloud_only"


@dataclass(frozen=True, slots=True)
class Outcome:
    """A session's result; all times in seconds since the request began."""

    mode: Mode
    finish_reason: str
    """``stop``, ``length``, ``error`` (nobody could go on) or ``cancelled`` (the consumer left before the end)."""
    timeline: Timeline
    """The tokens that were shown."""
    prompt_tokens: int
    decode_budget: int | None
    """What the cloud was asked to decode at most; None when the cloud decided, or had no handoff to prepare."""
    handoff_id: str | None
    caught_up_at: float | None
    """When the device had first processed the prompt and every token received by then."""
    took_over_at: float | None
    """When the answer became the device's; None if it never did, or was from the start."""
    cloud_tokens_in_vain: int
    """Tokens the cloud sent after the take-over."""
    cloud_error: str | None
    """``Type: message`` of why the cloud had no part or was lost."""
    cancel_confirmed: bool | None
    """Whether the cloud confirmed that it stopped; None if nothing had to be cancelled, or it gave no answer."""
    reused_tokens: int
    """Prompt tokens that the device found in its context from an earlier answer."""
