"""A chat's messages as a template expects them: content as text or as parts, arguments as objects.

The rules are those of vLLM's ``renderers.chat_utils`` and ``renderers.hf``, so that the prompt is the cloud's.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.engine.content_format import ContentFormat

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Json = dict[str, Any]

JOINT = "\n"
"""Between the parts of one message, where a template takes one string."""
_MAX_NESTING = 200
"""Objects and arrays inside one another in a tool call's arguments; as in a request's body."""


def texts_of(content: Any) -> list[str]:
    """Return the texts in a message's content: a string, text parts, or None, which has none."""
    if isinstance(content, str):
        return [content]
    return [part if isinstance(part, str) else part["text"] for part in content or ()]


def joined(content: Any) -> str:
    """Return a message's content as one string; parts without text leave no empty line."""
    return JOINT.join(filter(None, texts_of(content)))


def as_expected(messages: Sequence[Mapping[str, Any]], form: ContentFormat) -> list[Json]:
    """Return copies of `messages` with contents in the form `form`, and calls' arguments as objects.

    A null content becomes empty. A tool's result is one string in either form: few templates take it in parts.
    """
    return [_as_expected(message, form) for message in messages]


def without_developer(messages: Sequence[Json]) -> list[Json]:
    """Return `messages` with the developer's as the system's, for a template that does not know that role.

    Where a system message is then not the first, or not the only one, all of them become one at the beginning.
    """
    if not any(message.get("role") == "developer" for message in messages):
        return list(messages)
    renamed = [{**one, "role": "system"} if one.get("role") == "developer" else one for one in messages]
    places = [index for index, message in enumerate(renamed) if message.get("role") == "system"]
    if places == [0]:
        return renamed
    contents = [joined(renamed[index].get("content")) for index in places]
    system: Json = {"role": "system", "content": "\n\n".join(filter(None, contents))}
    return [system, *(message for message in renamed if message.get("role") != "system")]


def _as_expected(message: Mapping[str, Any], form: ContentFormat) -> Json:
    made = dict(message)
    if "content" in made:
        content = made["content"]
        if made.get("role") == "tool" and not isinstance(content, str):
            made["content"] = JOINT.join(texts_of(content)) if form is ContentFormat.OPENAI else joined(content)
        elif form is ContentFormat.OPENAI and made.get("role") != "tool":
            made["content"] = [{"type": "text", "text": text} for text in texts_of(content)]
        else:
            made["content"] = joined(content)
    if made.get("reasoning_content") is not None:  # templates know the thoughts of earlier turns by either name
        made["reasoning"] = made["reasoning_content"]
    calls = made.pop("tool_calls", None)
    if calls:
        made["tool_calls"] = [_call(call) for call in calls]
    return made


def _call(call: Mapping[str, Any]) -> Json:
    """Return `call` with its arguments as an object, in vLLM's order: some templates write it as a whole."""
    function = dict(call["function"])
    function = {"arguments": arguments_object(function.pop("arguments", None)), **function}
    rest = {key: value for key, value in call.items() if key not in ("function", "type")}
    return {**rest, "function": function, "type": "function"}


def arguments_object(arguments: Any) -> Json:
    """Return a tool call's arguments as an object.

    What is not one, or nests too deep to be written again, becomes an empty object, as in vLLM: it lies in the
    conversation's past, and refusing it would refuse every later turn too.
    """
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except (ValueError, RecursionError):
            return {}
    return arguments if isinstance(arguments, dict) and not _nests_deeper(arguments, _MAX_NESTING) else {}


def _nests_deeper(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        level = [
            inner
            for node in level
            if isinstance(node, dict | list)
            for inner in (node.values() if isinstance(node, dict) else node)
        ]
        if not level:
            return False
    return True
