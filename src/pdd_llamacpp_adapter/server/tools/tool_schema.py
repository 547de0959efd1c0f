"""The grammars of answers that have to be a tool call, or that may be one instead of words in a given form."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pdd_llamacpp_adapter.request import Grammar, GrammarKind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_llamacpp_adapter.server.tools.call_format import JsonShape
    from pdd_llamacpp_adapter.server.wire.json_body import Json

MAX_FORCED_CALLS = 16
"""A model that cannot end a list would fill it until the answer's maximal length."""
_ANY_OBJECT = {"type": "object", "additionalProperties": True}
"""Said outright, for vLLM's xgrammar would take a bare object behind a reference for one without properties."""


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


def call_or_words(functions: Sequence[Json], words: Grammar, shape: JsonShape, *, parallel: bool) -> Grammar:
    """Return the grammar of a call, or of `words`, which are JSON themselves.

    A call looks as the model was taught, but for the markers around it: those may be control tokens, which no JSON
    has, and without them too a call is known by its keys. So which one it becomes is the model's own choice.
    """
    definitions: Json = {"answer": _ANY_OBJECT}
    if words.kind is GrammarKind.JSON:
        definitions["answer"] = _moved_root(json.loads(words.text), "#/$defs/answer")
    calls = [_call(function, f"tool{index}", definitions, shape.field) for index, function in enumerate(functions)]
    if shape.listed:
        most = MAX_FORCED_CALLS if parallel else 1
        calls = [{"type": "array", "items": {"anyOf": calls}, "minItems": 1, "maxItems": most}]
    schema = {"anyOf": [{"$ref": "#/$defs/answer"}, *calls], "$defs": definitions}
    return Grammar(GrammarKind.JSON, json.dumps(schema, ensure_ascii=False), param=words.param)


def _call(function: Json, key: str, definitions: Json, field: str = "arguments") -> Json:
    parameters = function["parameters"]
    moved = _moved_root(parameters, f"#/$defs/{key}")
    if moved != parameters:  # it refers to parts of itself, so it has to stay in one piece, at a known place
        definitions[key] = moved
        moved = {"$ref": f"#/$defs/{key}"}
    return {
        "type": "object",
        "properties": {"name": {"type": "string", "enum": [function["name"]]}, field: moved},
        "required": ["name", field],
        "additionalProperties": False,
    }


def _moved_root(schema: Json, root: str) -> Json:
    """Return `schema`, a whole one, as it has to be at `root`: nothing refers to it by its own name any more."""
    moved: Json = _moved({key: value for key, value in schema.items() if key != "$id"}, root)
    return moved


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
