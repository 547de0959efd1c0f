"""``response_format``: what an answer has to look like.

https://platform.openai.com/docs/api-reference/chat/create#chat-create-response_format
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import Grammar, GrammarKind

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.server.wire.json_body import Json


def grammar_of(response_format: Json | None) -> Grammar | None:
    """Return the grammar that `response_format` asks for; None for plain text.

    Raises:
        InvalidRequest: it is none of OpenAI's three kinds, or has no schema. Whether a schema can be obeyed, the
            runtime's `check_grammar` knows.
    """
    if response_format is None:
        return None
    match response_format.get("type"):
        case "text":
            return None
        case "json_object":
            return Grammar(GrammarKind.JSON_OBJECT)
        case "json_schema":
            return Grammar(GrammarKind.JSON, _schema(response_format))
        case _:
            where = "response_format.type"
            raise InvalidRequest(f"{where} must be text, json_object or json_schema", param=where)


def _schema(response_format: Json) -> str:
    where = "response_format.json_schema"
    described = response_format.get("json_schema")
    if not isinstance(described, dict):
        raise InvalidRequest(f"{where} must be an object with a schema", param=where)
    schema = described.get("schema")
    if not isinstance(schema, dict):
        raise InvalidRequest(f"{where}.schema must be an object", param=f"{where}.schema")
    return json.dumps(schema, ensure_ascii=False)
