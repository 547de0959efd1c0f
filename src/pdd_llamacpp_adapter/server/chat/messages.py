"""A chat's messages in one shape, whatever shape the client chose among those that OpenAI allows.

https://platform.openai.com/docs/api-reference/chat/create#chat-create-messages
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidRequest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_llamacpp_adapter.server.wire.json_body import Json

_ROLES = {
    "developer": "developer",
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "tool": "tool",
    "function": "tool",
}
"""The older ``function`` answers the assistant's `function_call`, which has no id."""
_NO_ID = ""
_EXTRAS = {
    "name": "name",
    "tool_call_id": "tool_call_id",
    "reasoning": "reasoning_content",
    "reasoning_content": "reasoning_content",
}
"""Text fields that a template may read, and how they are called here; vLLM has both names for thoughts."""


def plain_messages(messages: Sequence[Any]) -> list[Json]:
    """Return the messages with ``content`` as a string, text parts, or None beside calls, and no unknown fields.

    Raises:
        InvalidRequest: there is none, one is malformed, or one holds something else than text.
    """
    if not messages:
        raise InvalidRequest("messages must not be empty", param="messages")
    return [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]


def _plain(message: Any, where: str) -> Json:
    if not isinstance(message, dict):
        raise InvalidRequest(f"{where} must be an object", param=where)
    role = message.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        names = ", ".join(_ROLES)
        raise InvalidRequest(f"{where}.role must be one of {names}", param=f"{where}.role")
    plain: Json = {"role": _ROLES[role]}
    plain["content"] = _content(message, f"{where}.content", role)
    calls = _calls(message, where) if role == "assistant" else []
    if calls:
        plain["tool_calls"] = calls
    for name, known_as in _EXTRAS.items():
        value = message.get(name)
        if value is None:
            continue
        if not isinstance(value, str):
            raise InvalidRequest(f"{where}.{name} must be a string", param=f"{where}.{name}")
        plain.setdefault(known_as, value)
    if role == "function":
        plain["tool_call_id"] = _NO_ID
    if role == "tool" and "tool_call_id" not in plain:
        raise InvalidRequest(f"{where}.tool_call_id is missing", param=f"{where}.tool_call_id")
    return plain


def _content(message: Json, where: str, role: str) -> str | list[Json] | None:
    content = message.get("content")
    if content is None and role == "assistant":
        refusal = message.get("refusal")
        if isinstance(refusal, str):
            return refusal
        return None if message.get("tool_calls") or message.get("function_call") else ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param=where)
    texts = [_text(part, f"{where}[{index}]") for index, part in enumerate(content)]
    return [{"type": "text", "text": text} for text in texts]


def _text(part: Any, where: str) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise InvalidRequest(f"{where} must be an object with a type", param=where)
    kind = part["type"]
    if kind not in ("text", "refusal"):
        raise InvalidRequest(
            f"{where} is of type {kind[:40]!r}: this model takes only text", param=where, code="unsupported_value"
        )
    text = part.get(kind)
    if not isinstance(text, str):
        raise InvalidRequest(f"{where}.{kind} must be a string", param=f"{where}.{kind}")
    return text


def _calls(message: Json, where: str) -> list[Json]:
    calls, called = message.get("tool_calls"), message.get("function_call")
    if calls:
        if not isinstance(calls, list):
            raise InvalidRequest(f"{where}.tool_calls must be a list", param=f"{where}.tool_calls")
        return [_call(call, f"{where}.tool_calls[{index}]") for index, call in enumerate(calls)]
    if called:
        return [{"id": _NO_ID, "type": "function", "function": _function(called, f"{where}.function_call")}]
    return []


def _call(call: Any, where: str) -> Json:
    function = call.get("function") if isinstance(call, dict) else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where} must have a function with a name", param=where)
    call_id = call.get("id")
    if call_id is not None and not isinstance(call_id, str):
        raise InvalidRequest(f"{where}.id must be a string", param=f"{where}.id")
    return {"id": call_id or _NO_ID, "type": "function", "function": _function(function, f"{where}.function")}


def _function(function: Any, where: str) -> Json:
    if not isinstance(function, dict) or not isinstance(function.get("name"), str):
        raise InvalidRequest(f"{where} must be an object with a name", param=where)
    arguments = function.get("arguments")
    arguments = "{}" if arguments is None else arguments
    if not isinstance(arguments, str):
        raise InvalidRequest(f"{where}.arguments must be a string", param=f"{where}.arguments")
    return {"name": function["name"], "arguments": arguments}
