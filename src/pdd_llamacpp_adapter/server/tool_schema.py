"""The grammar of a forced tool call."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.request import Grammar, GrammarKind

if TYPE_CHECKING:
    from collections.abc import Sequence

Json = dict[str, Any]

MAX_FORCED_CALLS = 16
"""A model that cannot end a list would fill it until the answer's maximal length."""


def forced_calls(functions: Sequence[Json], *, parallel: bool) -> Grammar:
    """Return the grammar of ``[{"name": ..., "arguments": {...}}, ...]``: one call of these functions at least."""
    definitions: Json = {}
    options = [_call(function, f"tool{index}", definitions) for index, function in enumerate(functions)]
    schema: Json = {
        "type": "array",
        "items": options[0] if len(options) == 1 else {"anyOf": options},
        "minItems": 1,
        "maxItems": MAX_FORCED_CALLS if parallel else 1,
    }
    if definitions:
        schema["$defs"] = definitions
    return Grammar(GrammarKind.JSON, json.dumps(schema), param="tools")


def _call(function: Json, key: str, definitions: Json) -> Json:
    parameters = function["parameters"]
    moved = _moved(parameters, f"#/$defs/{key}")
    if moved != parameters:  # it refers to parts of itself, so it has to stay in one piece, at a known place
        definitions[key] = moved
        moved = {"$ref": f"#/$defs/{key}"}
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [function["name"]]}, "arguments": moved},
        "required": ["name", "arguments"],
        "additionalProperties": False,
    }


def _moved(schema: Any, root: str) -> Any:
    """Return `schema` with its references to its own root `#` pointing to `root`."""
    if isinstance(schema, list):
        return [_moved(item, root) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: _moved(value, root) for key, value in schema.items()}
    target = schema.get("$ref")
    if isinstance(target, str) and target.startswith("#"):
        made["$ref"] = root + target[1:]
    return made
