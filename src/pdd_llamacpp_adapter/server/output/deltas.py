"""What an answer's text turns out to be, piece by piece: the words between the parsers and the routes."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ContentDelta:
    """More of what the assistant says to the user."""

    text: str


@dataclass(frozen=True, slots=True)
class ReasoningDelta:
    """More of what the model thinks before it speaks."""

    text: str


@dataclass(frozen=True, slots=True)
class ToolCallDelta:
    """A tool call begins, or its arguments go on."""

    index: int
    """Position among the answer's tool calls."""
    arguments: str
    """More of the arguments' JSON text."""
    call_id: str | None = None
    """Set on the first delta of a call, as `name` is."""
    name: str | None = None


Delta = ContentDelta | ReasoningDelta | ToolCallDelta
