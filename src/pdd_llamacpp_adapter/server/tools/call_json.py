"""Tool calls that are JSON: ``{"name": ..., "arguments": {...}}``, alone or in a list."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.server.tools.call_format import named_call

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.tools.call_format import ToolCall, Tools

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


def read_calls(value: str, tools: Tools) -> list[ToolCall] | None:
    """Return the calls in `value`, an object or a list of them; None if one is no call of one of `tools`."""
    try:
        # not strict: models write line breaks into strings, and json.dumps escapes them
        read = json.loads(value, strict=False)
        calls = [_call(item, tools) for item in (read if isinstance(read, list) else [read])]
    except (ValueError, RecursionError):
        return None
    return [call for call in calls if call] if calls and all(calls) else None


def read_named(name: str, arguments: str, tools: Tools) -> list[ToolCall] | None:
    """Return the call of `name` with `arguments`, the text of a JSON object; None if it is none."""
    try:
        call = named_call(name, arguments, tools)
    except (ValueError, RecursionError):
        return None
    return None if call is None else [call]


def _call(item: Any, tools: Tools) -> ToolCall | None:
    if not isinstance(item, dict):
        return None
    arguments = item.get("arguments", item.get("parameters"))
    name: Any = item.get("name")
    return named_call(name, {} if arguments is None else arguments, tools)
