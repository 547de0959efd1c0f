"""A schema as both engines are sent it. tests/integration/device/test_same_language.py has the engines."""

from __future__ import annotations

import json

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidGrammar
from pdd_core.handoff import StructuredOutputs
from pdd_llamacpp_adapter.engine.explicit_grammar import explicit_grammar
from pdd_llamacpp_adapter.engine.explicit_schema import explicit_schema
from pdd_llamacpp_adapter.request import Grammar, GrammarKind

ANY = {"type": "object", "additionalProperties": True}


def made(schema, *, closed=True):
    explicit, differs = explicit_schema(schema, closed=closed)
    assert differs is None
    assert explicit_schema(explicit, closed=closed) == (explicit, None)
    return explicit


def test_an_object_holds_what_it_names():
    closed = {"type": "object", "properties": {}, "additionalProperties": False}
    assert made({"properties": {}}) == closed
    assert made({"type": "object", "properties": {}}) == closed
    assert made({"type": "object", "title": "anything"}) == {"title": "anything", **ANY}
    assert made({"properties": {"a": {"type": "object"}}})["properties"] == {"a": ANY}
    given = {"type": "object", "properties": {}, "additionalProperties": {"type": "object"}}
    assert made(given) == {**given, "additionalProperties": ANY}


def test_required_properties_without_a_schema_may_be_anything():
    assert made({"required": ["a"]}) == {
        "type": "object",
        "required": ["a"],
        "additionalProperties": False,
        "properties": {"a": {}},
    }
    others = {"required": ["a"], "additionalProperties": {"type": "string"}}
    assert made(others)["properties"] == {"a": {"type": "string"}}


def test_arrays_that_begin_with_given_items_hold_no_others():
    assert made({"prefixItems": [{"type": "null"}]})["items"] is False
    assert made({"type": "array"}) == {"type": "array", "items": True}


def test_objects_stay_open_where_the_cloud_leaves_them_open():
    assert made({"properties": {}}, closed=False)["additionalProperties"] is True
    assert made({"prefixItems": [{}]}, closed=False)["items"] is True


def test_alternatives():
    texts = {"type": "string", "maxLength": 3}
    assert made({"type": ["string", "null"], "maxLength": 3}) == {"anyOf": [texts, {"type": "null"}]}
    assert made({"oneOf": [texts]}) == {"anyOf": [texts]}
    assert made({"description": "d", "allOf": [texts]}) == {"description": "d", **texts}
    union = {"oneOf": [texts], "discriminator": {"propertyName": "kind"}, "nullable": True}
    assert made(union)["anyOf"] == [texts]
    assert made({"type": "integer", "enum": [1, "a", True, 2]}) == {"enum": [1, 2]}


@pytest.mark.parametrize("one", [True, False, None, 3, "x", []])
def test_all_of_one_that_is_no_object_is_left_to_one_side(one):
    """True and false are schemas, too."""
    assert explicit_schema({"allOf": [one]}, closed=True) == ({"allOf": [one]}, "allOf")


def test_patterns_are_of_the_whole_text_and_of_ascii():
    patterns = {
        "ab": "^ab$",
        "^a|b": None,
        "a|b": "^(a|b)$",
        r"^\d[\d.]$": "^[0-9][0-9.]$",
        r"\\d": None,
        "(?!a)b": None,
    }
    for pattern, wanted in patterns.items():
        explicit, differs = explicit_schema({"type": "string", "pattern": pattern}, closed=True)
        assert (explicit["pattern"] if differs is None else None) == wanted, pattern


@pytest.mark.parametrize(
    ("schema", "what"),
    [
        ({"type": "string", "format": "date"}, "format"),
        ({"type": "string", "pattern": "^.*$"}, "pattern"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "pattern beside a length"),
        ({"type": "object", "properties": {"a": {"not": {}}}}, "not"),
        ({"allOf": [{}, {}]}, "allOf"),
        ({"type": "object", "anyOf": [{"required": ["a"]}]}, "anyOf beside type"),
        ({"minLength": 1, "minimum": 2}, "keywords of several types without a type"),
        ({"$ref": "#/$defs/none"}, "$ref #/$defs/none"),
        ({"$ref": "https://example.org/schema"}, "$ref https://example.org/schema"),
        ({"enum": [0.1]}, "the constant 0.1"),
        ({"const": {"a": [1e20]}}, "the constant 1e+20"),
        ({"type": "number", "maximum": 1}, "the bounds of a number"),
        ({"type": "array", "items": [{}]}, "items as a list"),
    ],
)
def test_what_the_engines_read_differently_is_named(schema, what):
    assert explicit_schema(schema, closed=True)[1] == what


def grammar(kind, text="", told=None):
    return explicit_grammar(Grammar(kind, text), told)


def test_the_cloud_s_settings_are_followed():
    schema = json.dumps({"properties": {}})
    for told, is_open in [
        (None, False),
        (StructuredOutputs(), False),
        (StructuredOutputs(backend="guidance"), True),
        (StructuredOutputs(backend="guidance", disable_additional_properties=True), False),
    ]:
        assert json.loads(grammar(GrammarKind.JSON, schema, told).text)["additionalProperties"] is is_open
    compact = StructuredOutputs(backend="xgrammar", disable_any_whitespace=True)
    assert grammar(GrammarKind.JSON_OBJECT, "", compact).compact


def test_an_engine_that_was_not_compared_keeps_its_answers_and_the_device_s_own_hands_over_all():
    date = json.dumps({"type": "string", "format": "date"})
    assert grammar(GrammarKind.JSON, date, StructuredOutputs(backend="auto")).differs == "format"
    assert grammar(GrammarKind.JSON, date, StructuredOutputs(backend="guidance")).differs is None
    outlines = grammar(GrammarKind.JSON, "{}", StructuredOutputs(backend="outlines"))
    assert outlines.differs == "the cloud's grammar engine is outlines"


def test_grammars_of_other_kinds():
    assert grammar(GrammarKind.REGEX, r"\d+").text == "[0-9]+"
    assert grammar(GrammarKind.REGEX, ".*").differs == "the regular expression"
    assert grammar(GrammarKind.GRAMMAR, 'start: "a"').differs == "the grammar"
    assert grammar(GrammarKind.CHOICE, '["a"]').differs is None
    once = grammar(GrammarKind.JSON, "{}")
    assert explicit_grammar(once, None) is once


def test_what_could_not_be_compiled_safely_is_refused_first():
    with pytest.raises(InvalidGrammar, match="nests deeper"):
        grammar(GrammarKind.JSON, "[" * 60_000)


KEYWORDS = st.sampled_from(
    ["type", "properties", "required", "additionalProperties", "items", "prefixItems", "minItems", "pattern"]
) | st.sampled_from(
    ["minimum", "maximum", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "$defs", "format", "a"]
)
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["object", "number", "#", "["]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYWORDS, inner, max_size=4),
    max_leaves=12,
)


@examples(300)
@given(ANYTHING)
def test_whatever_is_sent_has_a_form(schema):
    explicit, _ = explicit_schema(schema, closed=True)
    json.dumps(explicit)
