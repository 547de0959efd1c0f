"""A response's input, items of several types, as the messages of a chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.engine.template_messages import joined

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_llamacpp_adapter.server.wire.json_body import Json

_ROLES = {"developer": "system", "system": "system", "user": "user", "assistant": "assistant"}
_TEXTS = {
    "input_text": "text",
    "output_text": "text",
    "text": "text",
    "reasoning_text": "text",
    "refusal": "refusal",
}
"""Types of content parts that are text, and the field it is in."""


def chat_messages(given: str | Sequence[Any], instructions: str | None = None) -> list[Json]:
    """Return the messages of the chat that `given` is, `instructions` first.

    System messages at the beginning become one: most chat templates have a place for one only. A call joins the
    assistant's message before it, as chat completions have it. Reasoning items are dropped: chat templates drop
    the thoughts of earlier turns too.

    Raises:
        InvalidRequest: an item is malformed, holds something else than text, or refers to what would be stored.
    """
    messages: list[Json] = [{"role": "system", "content": instructions}] if instructions else []
    if isinstance(given, str):
        return [*messages, {"role": "user", "content": given}]
    if not given:
        raise InvalidRequest("input must not be empty", param="input")
    for index, item in enumerate(given):
        _add(messages, item, f"input[{index}]")
    if not any(message["role"] != "system" for message in messages):
        raise InvalidRequest("input must have a message that is not the system's", param="input")
    return _one_system(messages)


def _add(messages: list[Json], item: Any, where: str) -> None:
    if not isinstance(item, dict):
        raise InvalidRequest(f"{where} must be an object", param=where)
    match item.get("type", "message"):
        case "message":
            messages.append(_message(item, where))
        case "function_call":
            _add_call(messages, item, where)
        case "function_call_output":
            call_id = _string(item, "call_id", where)
            content = _text(item.get("output"), f"{where}.output")
            messages.append({"role": "tool", "tool_call_id": call_id, "content": content})
        case "reasoning":
            pass
        case "item_reference":
            raise InvalidRequest(f"{where} refers to a stored item: nothing is stored, send the item", param=where)
        case _:
            rule = "must be message, function_call, function_call_output or reasoning"
            raise InvalidRequest(f"{where}.type {rule}", param=f"{where}.type", code="unsupported_value")


def _message(item: Json, where: str) -> Json:
    role = item.get("role")
    if not isinstance(role, str) or role not in _ROLES:
        raise InvalidRequest(f"{where}.role must be one of {', '.join(_ROLES)}", param=f"{where}.role")
    return {"role": _ROLES[role], "content": _text(item.get("content"), f"{where}.content")}


def _add_call(messages: list[Json], item: Json, where: str) -> None:
    function = {"name": _string(item, "name", where), "arguments": _string(item, "arguments", where)}
    call = {"id": _string(item, "call_id", where), "type": "function", "function": function}
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    messages[-1].setdefault("tool_calls", []).append(call)


def _text(content: Any, where: str) -> str | list[Json]:
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise InvalidRequest(f"{where} must be a string or a list of parts", param=where)
    return [{"type": "text", "text": _part(part, f"{where}[{index}]")} for index, part in enumerate(content)]


def _part(part: Any, where: str) -> str:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _TEXTS:
        raise InvalidRequest(
            f"{where} must be text, such as input_text: this model takes nothing else",
            param=where,
            code="unsupported_value",
        )
    return _string(part, _TEXTS[kind], where)


def _string(item: Json, name: str, where: str) -> str:
    value = item.get(name)
    if not isinstance(value, str):
        raise InvalidRequest(f"{where}.{name} must be a string", param=f"{where}.{name}")
    return value


def _one_system(messages: list[Json]) -> list[Json]:
    begins = next(index for index, message in enumerate(messages) if message["role"] != "system")
    if begins < 2:
        return messages
    content = "\n\n".join(joined(message["content"]) for message in messages[:begins])
    return [{"role": "system", "content": content}, *messages[begins:]]
