from __future__ import annotations

import json

import pytest

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import GrammarKind
from pdd_llamacpp_adapter.server.prompts.answer_format import grammar_of

SCHEMA = {"type": "object", "properties": {"é": {}}}


@pytest.mark.parametrize(
    ("structured", "kind", "text"),
    [
        ({"json": SCHEMA}, GrammarKind.JSON, json.dumps(SCHEMA, ensure_ascii=False)),
        ({"json": "{}", "regex": None}, GrammarKind.JSON, "{}"),
        ({"json_object": True}, GrammarKind.JSON_OBJECT, ""),
        ({"regex": "a+", "whitespace_pattern": None, "disable_any_whitespace": False}, GrammarKind.REGEX, "a+"),
        ({"choice": ["ja", "né"]}, GrammarKind.CHOICE, '["ja", "né"]'),
        ({"grammar": 'start: "a"'}, GrammarKind.GRAMMAR, 'start: "a"'),
    ],
)
def test_vllm_s_structured_outputs(structured, kind, text):
    grammar = grammar_of(None, structured)
    assert (grammar.kind, grammar.text) == (kind, text)
    name = next(name for name in structured if structured[name] is not None)
    assert grammar.param == f"structured_outputs.{name}"
    assert grammar_of({"type": "text"}, structured) == grammar


@pytest.mark.parametrize(
    ("structured", "param"),
    [
        ({}, "structured_outputs"),
        ({"json": {}, "regex": "a"}, "structured_outputs"),
        ({"regexp": "a"}, "structured_outputs.regexp"),
        ({"json": 7}, "structured_outputs.json"),
        ({"json": " "}, "structured_outputs.json"),
        ({"json": "[" * 60_000}, "structured_outputs.json"),
        ({"json": "true"}, "structured_outputs.json"),
        ({"json_object": False}, "structured_outputs.json_object"),
        ({"choice": []}, "structured_outputs.choice"),
        ({"choice": ["a", 1]}, "structured_outputs.choice"),
        ({"grammar": 'root ::= "a"'}, "structured_outputs.grammar"),
    ],
)
def test_what_is_none_is_refused_by_its_name(structured, param):
    with pytest.raises(InvalidRequest) as refused:
        grammar_of(None, structured)
    assert refused.value.param == param


def test_two_formats_at_once_are_refused():
    with pytest.raises(InvalidRequest, match="cannot be had with a response_format"):
        grammar_of({"type": "json_object"}, {"regex": "a"})


def test_llama_cpp_s_way_to_name_a_schema():
    assert grammar_of({"type": "json_object", "schema": {"const": 1}}).text == '{"const": 1}'
    with pytest.raises(InvalidRequest) as refused:
        grammar_of({"type": "json_object", "schema": 1})
    assert refused.value.param == "response_format.schema"
