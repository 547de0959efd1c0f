"""A conversation with tools, put so that a chat template can render it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.engine.template_messages import arguments_object, joined

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pdd_llamacpp_adapter.server.wire.json_body import Json

_OWN_ID = "call_"


def described(tools: Sequence[Mapping[str, Any]]) -> str:
    """Return what tells a model about `tools`, in the words of the Hermes models' prompt, which Qwen's is too."""
    signatures = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{signatures}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        "<tool_call></tool_call> XML tags:\n"
        '<tool_call>\n{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'
    )


def with_instructions(messages: Sequence[Json], text: str, *, system: bool) -> list[Json]:
    """Return `messages` with `text` at the head of the system message.

    Without `system`, for a template that has no place for one, it heads the first user message.
    """
    role = "system" if system else "user"
    first = next((index for index, message in enumerate(messages) if message["role"] == role), None)
    if first is None or (system and first > 0):
        return [{"role": role, "content": text}, *messages]
    own = messages[first].get("content")
    headed = {**messages[first], "content": _headed(text, own)}
    return [*messages[:first], headed, *messages[first + 1 :]]


def _headed(text: str, content: str | list[Json] | None) -> str | list[Json]:
    if not content:
        return text
    if isinstance(content, str):
        return f"{text}\n\n{content}"
    first, *others = content
    return [{**first, "text": f"{text}\n\n{first['text']}"}, *others]


def as_text(messages: Sequence[Json], *, alternating: bool = False) -> list[Json]:
    """Return `messages` with tool calls and results written out in Hermes form.

    For a template that knows neither: calls go into the assistant's text, results into the user's. Where roles
    have to alternate (`alternating`), what the user says next follows the results in the same message.
    """
    made: list[Json] = []
    after_result = False
    for message in messages:
        if message["role"] == "tool":
            result = f"<tool_response>\n{joined(message.get('content'))}\n</tool_response>"
            if after_result:
                made[-1]["content"] += "\n" + result
            else:
                made.append({"role": "user", "content": result})
            after_result = True
            continue
        if after_result and alternating and message["role"] == "user":
            made[-1] = {**message, "content": _headed(made[-1]["content"], message.get("content"))}
        else:
            made.append(_call_text(message) if message.get("tool_calls") else dict(message))
        after_result = False
    return made


def _call_text(message: Json) -> Json:
    lines = [words] if (words := joined(message.get("content"))) else []
    for call in message["tool_calls"]:
        function = call["function"]
        written = {"name": function["name"], "arguments": arguments_object(function.get("arguments"))}
        lines.append(f"<tool_call>\n{json.dumps(written, ensure_ascii=False)}\n</tool_call>")
    rest = {key: value for key, value in message.items() if key != "tool_calls"}
    return {**rest, "content": "\n".join(lines)}


def one_call_each(messages: Sequence[Json]) -> list[Json]:
    """Return `messages` with no more than one call per message: Llama's templates refuse several."""
    made: list[Json] = []
    for message in messages:
        first, *others = message.get("tool_calls") or [None]
        made.append({**message, "tool_calls": [first]} if others else message)
        made += [{**message, "content": None, "tool_calls": [call]} for call in others]
    return made


def with_short_ids(messages: Sequence[Json]) -> list[Json]:
    """Return `messages` with call ids of nine letters and digits: Mistral's templates refuse others.

    As in vLLM, an id's last nine are kept, so that a result still names its call.
    """
    made = []
    for message in messages:
        short = dict(message)
        if message.get("tool_call_id") is not None:
            short["tool_call_id"] = _short(message["tool_call_id"])
        if message.get("tool_calls"):
            short["tool_calls"] = [{**call, "id": _short(call.get("id") or "")} for call in message["tool_calls"]]
        made.append(short)
    return made


def with_function_ids(messages: Sequence[Json]) -> list[Json]:
    """Return `messages` with call ids such as ``functions.weather:0``: Kimi's templates write the id as the call.

    Ids that are not from here or OpenAI stay.
    """
    made: list[Json] = []
    known: dict[str, str] = {}
    count = 0
    for message in messages:
        changed = dict(message)
        for call in message.get("tool_calls") or ():
            if (call.get("id") or _OWN_ID).startswith(_OWN_ID):
                known[call.get("id") or ""] = f"functions.{call['function']['name']}:{count}"
            count += 1
        if message.get("tool_calls"):
            changed["tool_calls"] = [
                {**call, "id": known.get(call.get("id") or "", call.get("id"))} for call in message["tool_calls"]
            ]
        if message["role"] == "tool":
            changed["tool_call_id"] = known.get(message["tool_call_id"], message["tool_call_id"])
        made.append(changed)
    return made


def _short(call_id: str) -> str:
    return re.sub(r"[^a-zA-Z0-9]", "", call_id)[-9:].rjust(9, "0")
