"""Arguments that a model wrote as plain text between tags, as the values that the tool's schema asks for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.wire.json_body import Json

_WORDS = {"True": True, "False": False, "None": None}
"""Models that are used to Python write these where JSON has others."""
_KINDS = {str: "string", bool: "boolean", int: "integer", float: "number", type(None): "null"}
_MOST_REFERENCES = 8


def value_of(text: str, name: str, parameters: Json) -> Any:
    """Return the value of the argument `name` that was written as `text`.

    It stays text where the schema has only strings, and where it is not JSON of a type that the schema has.

    Args:
        text: between the tags.
        name: the argument.
        parameters: the JSON schema of the tool's parameters.
    """
    properties = parameters.get("properties")
    schema = properties.get(name) if isinstance(properties, dict) else None
    kinds = _kinds(schema, parameters)
    if kinds == {"string"}:
        return text
    try:
        value = _WORDS[text.strip()] if text.strip() in _WORDS else json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text
    kind = _KINDS.get(type(value), "array" if isinstance(value, list) else "object")
    fits = not kinds or kind in kinds or (kind == "integer" and "number" in kinds)
    # "5" of a string or a number is the number, as it would be without quotes in JSON; but a string has its quotes
    return value if fits and kind != "string" else text


def _kinds(schema: Any, root: Json, depth: int = 0) -> set[str]:
    """Return the types that `schema` allows; none at all if it does not say."""
    if not isinstance(schema, dict) or depth > _MOST_REFERENCES:
        return set()
    reference = schema.get("$ref")
    if isinstance(reference, str):
        return _kinds(_referred(reference, root), root, depth + 1)
    stated = schema.get("type")
    if stated is not None:
        return {kind for kind in (stated if isinstance(stated, list) else [stated]) if isinstance(kind, str)}
    values = schema.get("enum") or ([schema["const"]] if "const" in schema else [])
    if isinstance(values, list) and values:
        return {_KINDS.get(type(value), "object") for value in values}
    options = [option for key in ("anyOf", "oneOf") for option in schema.get(key) or ()]
    found = [_kinds(option, root, depth + 1) for option in options]
    return set[str]().union(*found) if all(found) else set()


def _referred(reference: str, root: Json) -> Any:
    found: Any = root
    for key in reference.removeprefix("#").strip("/").split("/"):
        found = found.get(key.replace("~1", "/").replace("~0", "~")) if isinstance(found, dict) else None
    return found
