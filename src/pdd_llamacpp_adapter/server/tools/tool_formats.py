"""What a tool call looks like in a model's text, and how to read one."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Collection

    from pdd_llamacpp_adapter.engine.chat_template import ChatTemplate


class CallFormat(StrEnum):
    """Names are those of vLLM's ``--tool-call-parser``."""

    HERMES = "hermes"
    """``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``; Hermes, Qwen 2.5 and 3, Granite 4."""
    LLAMA3_JSON = "llama3_json"
    """``{"name": ..., "parameters": {...}}`` as the answer's beginning, perhaps after ``<|python_tag|>``."""
    MISTRAL = "mistral"
    """``[TOOL_CALLS][{"name": ..., "arguments": {...}}]``; Mistral before 2025."""


@dataclass(frozen=True, slots=True)
class CallSyntax:
    """How the calls of one format begin and end."""

    marker: str
    """Announces a call, at any place. May be missing at the beginning of an answer and between calls: in
    some models it is a control token, which adds no text."""
    opens: str
    """First character of the JSON that follows."""
    closes: str = ""
    """Follows the JSON; may be missing."""
    between: str = ""
    """May come between two calls, besides white space."""


SYNTAXES = {
    CallFormat.HERMES: CallSyntax("<tool_call>", "{", closes="</tool_call>"),
    CallFormat.LLAMA3_JSON: CallSyntax("<|python_tag|>", "{", between=";"),
    CallFormat.MISTRAL: CallSyntax("[TOOL_CALLS]", "["),
}

_NAME = "probe_the_format"
_RENDERED = {
    CallFormat.HERMES: rf'<tool_call>\s*\{{"name": "{_NAME}", "arguments": \{{"of": 1\}}\}}\s*</tool_call>',
    CallFormat.MISTRAL: rf'\[TOOL_CALLS\] ?\[\{{.*"name": "{_NAME}".*\]',
    CallFormat.LLAMA3_JSON: rf'\{{("type": "function", )?"name": "{_NAME}", "parameters": \{{"of": 1\}}\}}',
}
_TOOL = {"type": "function", "function": {"name": _NAME, "description": "", "parameters": {"type": "object"}}}
_PROBE: list[dict[str, Any]] = [
    {"role": "user", "content": "Hi"},
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "abcdefghi", "type": "function", "function": {"name": _NAME, "arguments": '{"of": 1}'}},
        ],
    },
    {"role": "tool", "tool_call_id": "abcdefghi", "name": _NAME, "content": "1"},
]


@lru_cache(maxsize=8)
def format_of(template: ChatTemplate) -> CallFormat | None:
    """Return the format in which `template` writes the calls of earlier turns: what the model was trained on.

    None if the template does not read tools, or writes calls in a format that is not among these.
    """
    if not template.supports_tools:
        return None
    try:
        text = template.render(_PROBE, tools=[_TOOL])
    except InvalidRequest:
        return None
    return next((form for form, pattern in _RENDERED.items() if re.search(pattern, text, re.DOTALL)), None)


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A tool call as read from text."""

    name: str
    arguments: str
    """A JSON object."""


_KEYS = frozenset({"name", "arguments", "parameters", "type", "id"})


def may_be_call(value: str, opens: str) -> bool:
    """Return whether JSON that begins with `value` can be a call: an answer in JSON is told from one early."""
    if not value.startswith(opens):
        return not value
    rest = value[1:].lstrip()
    if opens == "[" and rest:
        if not rest.startswith("{"):
            return False
        rest = rest[1:].lstrip()
    if not rest:
        return True
    key, ended, _ = rest[1:].partition('"')
    return rest[0] == '"' and (key in _KEYS if ended else any(known.startswith(key) for known in _KEYS))


def read_calls(value: str, names: Collection[str]) -> list[ToolCall] | None:
    """Return the calls in `value`, an object or a list of them; None if one is no call of a tool in `names`."""
    try:
        # not strict: models write line breaks into strings, and json.dumps escapes them
        read = json.loads(value, strict=False)
        calls = [_call(item, names) for item in (read if isinstance(read, list) else [read])]
    except (ValueError, RecursionError):
        return None
    return [call for call in calls if call] if calls and all(calls) else None


def _call(item: Any, names: Collection[str]) -> ToolCall | None:
    if not isinstance(item, dict):
        return None
    name = item.get("name")
    arguments = item.get("arguments", item.get("parameters"))
    if isinstance(arguments, str):
        arguments = json.loads(arguments, strict=False)
    if arguments is None:
        arguments = {}
    if not isinstance(name, str) or name not in names or not isinstance(arguments, dict):
        return None
    return ToolCall(name, _dumped(arguments))


def _dumped(arguments: dict[str, Any]) -> str:
    text = json.dumps(arguments, ensure_ascii=False, allow_nan=False)
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair, which cannot be sent as UTF-8
        return json.dumps(arguments, allow_nan=False)
    return text
