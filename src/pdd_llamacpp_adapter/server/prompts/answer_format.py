"""``response_format`` and ``structured_outputs``: what an answer has to look like.

https://platform.openai.com/docs/api-reference/chat/create#chat-create-response_format
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.engine.grammar_limits import check_limits
from pdd_llamacpp_adapter.request import Grammar, GrammarKind

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.wire.json_body import Json


_KINDS = ("json", "json_object", "regex", "choice", "grammar")
"""Of vLLM's ``StructuredOutputsParams``, what constrains an answer."""
_MAX_CHOICES = 1024
_EBNF = "::="


def grammar_of(response_format: Json | None, structured_outputs: Json | None = None) -> Grammar | None:
    """Return the grammar that a request asks for; None for plain text.

    Args:
        response_format: OpenAI's field.
        structured_outputs: vLLM's.

    Raises:
        InvalidRequest: both constrain the answer, or one is malformed or too large. Whether a grammar can be
            obeyed, the runtime's `check_grammar` knows.
    """
    wanted = None if response_format is None else _response_format(response_format)
    if structured_outputs is None:
        return wanted
    if wanted is not None:
        problem = "structured_outputs cannot be had with a response_format that constrains the answer, too"
        raise InvalidRequest(problem, param="structured_outputs")
    return _structured(structured_outputs)


def _response_format(response_format: Json) -> Grammar | None:
    match response_format.get("type"):
        case "text":
            return None
        case "json_object" if response_format.get("schema") is not None:  # llama.cpp's way to name a schema
            return Grammar(GrammarKind.JSON, _schema(response_format, "response_format"))
        case "json_object":
            return Grammar(GrammarKind.JSON_OBJECT)
        case "json_schema":
            where = "response_format.json_schema"
            described = response_format.get("json_schema")
            if not isinstance(described, dict):
                raise InvalidRequest(f"{where} must be an object with a schema", param=where)
            return Grammar(GrammarKind.JSON, _schema(described, where))
        case _:
            where = "response_format.type"
            raise InvalidRequest(f"{where} must be text, json_object or json_schema", param=where)


def _schema(described: Json, where: str) -> str:
    schema = described.get("schema")
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{where}.schema must be an object", param=f"{where}.schema")
    return json.dumps(schema, ensure_ascii=False)


def _structured(asked: Json) -> Grammar:
    given = [name for name in _KINDS if asked.get(name) is not None]
    unknown = sorted(asked.keys() - {*_KINDS, *_OPTIONS})
    if unknown or len(given) != 1:
        where = f"structured_outputs.{unknown[0][:40]}" if unknown else "structured_outputs"
        raise InvalidRequest(f"structured_outputs must have one of {', '.join(_KINDS)}", param=where)
    name = given[0]
    value, where = asked[name], f"structured_outputs.{name}"
    kind = GrammarKind(name)
    match kind:
        case GrammarKind.JSON if isinstance(value, dict):
            return Grammar(kind, json.dumps(value, ensure_ascii=False), param=where)
        case GrammarKind.JSON_OBJECT if value is True:
            return Grammar(kind, param=where)
        case GrammarKind.CHOICE if isinstance(value, list) and 0 < len(value) <= _MAX_CHOICES:
            if all(isinstance(one, str) for one in value):
                return Grammar(kind, json.dumps(value, ensure_ascii=False), param=where)
        case GrammarKind.GRAMMAR if isinstance(value, str) and _EBNF in value:
            problem = f"{where} must be a Lark grammar: the device does not read the EBNF that has {_EBNF}"
            raise InvalidRequest(problem, param=where, code="unsupported_value")
        case GrammarKind.JSON if isinstance(value, str):
            grammar = Grammar(kind, value, param=where)
            check_limits(grammar)
            if isinstance(json.loads(value), dict):
                return grammar
        case GrammarKind.REGEX | GrammarKind.GRAMMAR if isinstance(value, str) and value.strip():
            return Grammar(kind, value, param=where)
    raise InvalidRequest(f"{where} must be {_RULES[kind]}", param=where)


_OPTIONS = ("structural_tag", "whitespace_pattern", "disable_any_whitespace", "disable_additional_properties")
"""Refused by the table of fields, unless they ask for nothing."""
_RULES = {
    GrammarKind.JSON: "a JSON schema, as an object or as text",
    GrammarKind.JSON_OBJECT: "true",
    GrammarKind.REGEX: "a regular expression",
    GrammarKind.CHOICE: f"a list of 1 to {_MAX_CHOICES} strings",
    GrammarKind.GRAMMAR: "a Lark grammar",
}
