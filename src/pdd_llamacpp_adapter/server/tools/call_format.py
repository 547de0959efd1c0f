"""What a tool call looks like in a model's text: the description that each format gives of itself."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from pdd_llamacpp_adapter.server.tools.call_body import Step
    from pdd_llamacpp_adapter.server.wire.json_body import Json

    Tools = Mapping[str, Json]
    """The JSON schemas of the tools' parameters, by the tools' names."""

PROBE = "probe_the_format"
"""The tool that is called, with ``{"of": 1}``, in the conversation by which a template shows its format."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as read from text."""

    name: str
    arguments: str
    """A JSON object."""


@dataclass(frozen=True, slots=True)
class JsonShape:
    """How a call without its markers is JSON, so that a grammar can allow for it."""

    field: str = "arguments"
    """Where the arguments are, beside `name`."""
    listed: bool = False
    """Whether calls stand in a list."""


def as_they_are(messages: Sequence[Json]) -> list[Json]:
    """Return copies of `messages`: what most templates need of a conversation's past."""
    return [dict(message) for message in messages]


@dataclass(frozen=True, slots=True, kw_only=True)
class CallFormat:
    """One format. `body` and `read` must agree: where `body` ends, `read` gets the text from behind the marker."""

    name: str
    parser: str
    """The name of vLLM's ``--tool-call-parser`` for it; empty if there is none."""
    written: str
    """A regular expression for the call of `PROBE` as templates write it; empty for a format that none writes."""
    body: Callable[[Tools], list[Step]]
    """The steps that follow a call's text to its end: see `call_body`."""
    read: Callable[[str, Tools], list[ToolCall] | None]
    """Returns the calls in a text that `body` has followed; None if one is no call of one of the tools."""
    markers: tuple[str, ...] = ()
    """Each announces a call, at any place, and belongs to no answer."""
    openings: tuple[str, ...] = ()
    """Each may begin a call, at any place, and is the beginning of what `body` follows."""
    bare: bool = False
    """Whether a call may stand without its marker at the beginning of an answer and between calls: in some models
    the marker is a control token, which adds no text."""
    closes: tuple[str, ...] = ()
    """May follow a call, and belong to no answer."""
    between: str = ""
    """Characters that may stand between two calls, besides white space."""
    json: JsonShape | None = None
    """None if a call without its markers is not JSON."""
    past: Callable[[Sequence[Json]], list[Json]] = as_they_are
    """Puts a conversation so that the format's templates can render it."""
    short_ids: bool = False
    """Whether the templates want call ids of nine letters and digits."""
    also: tuple[CallFormat, ...] = ()
    """Formats in which the same models answer, too."""


def named_call(name: str, arguments: Any, tools: Tools) -> ToolCall | None:
    """Return the call of the tool `name`; None if there is no such tool, or `arguments` is no object.

    Raises:
        ValueError: the arguments cannot be written as JSON, or are text that is none.
    """
    if isinstance(arguments, str):
        # not strict: models write line breaks into strings, and json.dumps escapes them
        arguments = json.loads(arguments, strict=False)
    if not isinstance(name, str) or name not in tools or not isinstance(arguments, dict):
        return None
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which cannot be sent as UTF-8
        text = json.dumps(arguments, allow_nan=False)
    return ToolCall(name, text)
