"""vLLM's xgrammar and the device's llguidance: what one writes under a schema, the other takes.

Both have one byte per token here, so that no model is needed.
"""

from __future__ import annotations

import json
import re
from random import Random

import numpy as np
import pytest
import xgrammar
from example_count import examples
from hypothesis import assume, given
from hypothesis import strategies as st

from pdd_core.handoff import StructuredOutputs
from pdd_llamacpp_adapter.engine.explicit_grammar import explicit_grammar
from pdd_llamacpp_adapter.engine.grammar import GrammarEngine
from pdd_llamacpp_adapter.request import Grammar, GrammarKind

END = 256
LONGEST = 80
BACKSLASH = ord("\\")
CLOSING = b'}]"'
SPACE = b" \t\n\r"
LIKELY = b'"{}[],:019aelnrtfsu \\-.eE/\x7fxyz'
"""Tokens that lead somewhere, and those at which the engines' languages may part."""
NAMES = st.sampled_from(["a", "b", "c", "é", "x y", "a/b", 'q"', "\n"])
CONSTANTS = st.sampled_from(
    ["a", "é", "a/b", 'q"', "\n", "", 1, -3, 1.5, None, True, {"x": 1, "y": [1, "a"]}, {}, [1, 2], []]
)
PATTERNS = st.sampled_from(
    ["^[a-z]+$", "ab", r"^\d{4}-\d{2}$", "[A-Za-z0-9_]*", "a|b", "^(foo|bar)[0-9]+", "^x{2,3}$", r"^a\.b$"]
) | st.sampled_from(["(?:ab)+c?", r"^[a-zA-Z0-9._%+-]+@[a-zA-Z0-9.-]+\.[a-zA-Z]{2,}$", r"[\d.]+", "^.*$"])
NOTES = st.sampled_from(
    [{}, {}, {}, {"title": "T", "description": "of it"}, {"discriminator": {"propertyName": "a"}}]
)
SCALARS = st.one_of(
    st.sampled_from([{"type": kind} for kind in ("string", "integer", "number", "boolean", "null")]),
    st.builds(
        lambda least, more: {"type": "string", "minLength": least, "maxLength": least + more},
        st.integers(0, 3),
        st.integers(0, 4),
    ),
    PATTERNS.map(lambda pattern: {"type": "string", "pattern": pattern}),
    st.builds(
        lambda kind, low, high: {"type": "integer", **({} if low is None else {kind: low}), "maximum": high},
        st.sampled_from(["minimum", "exclusiveMinimum"]),
        st.none() | st.integers(-150, 50),
        st.integers(60, 2000),
    ),
    st.sampled_from([{"type": "number", "minimum": 0}, {"type": "number", "minimum": 0, "maximum": 100}]),
    st.sampled_from(
        [{"type": "number", "minimum": -1}, {"type": "number", "exclusiveMinimum": 0, "maximum": 9.5}]
    ),
    st.lists(CONSTANTS, min_size=1, max_size=4).map(lambda values: {"enum": values}),
    CONSTANTS.map(lambda value: {"const": value}),
    st.sampled_from([{}, {"type": "object"}, {"type": "array"}, {"$ref": "#/$defs/d0"}, {"$ref": "#/$defs/d1"}]),
    st.lists(
        st.sampled_from(["string", "null", "integer", "object", "array", "boolean"]), min_size=1, unique=True
    ).map(lambda kinds: {"type": kinds}),
)


@st.composite
def objects(draw, inner):
    named = draw(st.dictionaries(NAMES, inner, max_size=3))
    made = draw(st.sampled_from([{"type": "object"}, {"type": "object"}, {}])) | {"properties": named}
    required = draw(st.lists(st.sampled_from([*named, "zz"]), max_size=2, unique=True))
    if required:
        made["required"] = required
    others = draw(st.none() | st.booleans() | inner)
    return (
        made
        if others is None or (others is False and "zz" in required)
        else made | {"additionalProperties": others}
    )


def arrays(inner):
    return st.one_of(
        st.builds(
            lambda items, least, most: {"type": "array", "items": items, "minItems": least, "maxItems": most},
            inner,
            st.integers(0, 2),
            st.integers(2, 3),
        ),
        st.builds(
            lambda first, others: {"type": "array", "prefixItems": first} | others,
            st.lists(inner, min_size=1, max_size=2),
            st.sampled_from([{}, {}, {"items": False}, {"items": True}]) | inner.map(lambda one: {"items": one}),
        ),
    )


def nested(inner):
    several = st.lists(inner, min_size=1, max_size=3)
    return st.one_of(
        objects(inner),
        arrays(inner),
        several.map(lambda options: {"anyOf": options}),
        several.map(lambda options: {"oneOf": options}),
        inner.map(lambda one: {"allOf": [one]}),
    )


PARTS = st.builds(lambda notes, schema: notes | schema, NOTES, st.recursive(SCALARS, nested, max_leaves=6))
SCHEMAS = st.builds(
    lambda schema, d0, d1: {**schema, "$defs": {"d0": d0, "d1": d1}},
    PARTS,
    PARTS.filter(lambda part: "$ref" not in json.dumps(part)),
    SCALARS.filter(lambda part: "$ref" not in part),
)


class Bytes:
    """A vocabulary of bytes and an end."""

    raw_tokens = (*("x" * 256), "<end>")
    size = len(raw_tokens)
    bos_id = -1

    def piece(self, token):
        return bytes([token]) if token < END else b""

    def is_special(self, token):
        return token == END

    def tokenize(self, text):
        return list(text.encode())


ENGINE = GrammarEngine(Bytes(), [END])
COMPILER = xgrammar.GrammarCompiler(
    xgrammar.TokenizerInfo(
        [bytes([byte]) for byte in range(256)] + [b"<end>"],
        xgrammar.VocabType.RAW,
        vocab_size=END + 1,
        stop_token_ids=[END],
    ),
    max_threads=1,
    cache_enabled=False,
)


class Cloud:
    """An answer as vLLM's ``XgrammarBackend`` constrains it."""

    def __init__(self, schema, *, compact=False):
        separators = (",", ":") if compact else None
        compiled = COMPILER.compile_json_schema(
            json.dumps(schema), any_whitespace=not compact, separators=separators
        )
        self._matcher = xgrammar.GrammarMatcher(compiled)
        self._bits = xgrammar.allocate_token_bitmask(1, END + 1)

    def next(self):
        self._bits.fill_(-1)
        self._matcher.fill_next_token_bitmask(self._bits)
        return np.flatnonzero(np.unpackbits(self._bits[0].numpy().view(np.uint8), bitorder="little")[: END + 1])

    def takes(self, token):
        return self._matcher.accept_token(token)


class Device:
    """An answer as the device constrains it."""

    def __init__(self, grammar):
        self._matcher = ENGINE.matcher(grammar)

    def next(self):
        return np.flatnonzero(self._matcher.mask(END + 1))

    def takes(self, token):
        return self._matcher.advance([token]) is None


def written(side, random, *, avoid=()):
    """Return an answer of `side`, likelier to end the longer it gets."""
    tokens = []
    while len(tokens) < LONGEST:
        may = [token for token in map(int, side.next()) if token not in avoid]
        if not may or (END in may and (len(may) == 1 or random.random() < 0.5)):
            return [*tokens, END] if END in may else tokens
        may = [token for token in may if token != END]
        closing = [token for token in may if token in CLOSING] if len(tokens) > LONGEST / 4 else []
        solid = [token for token in may if token not in SPACE] or may
        likely = [token for token in solid if token in LIKELY] or solid
        token = random.choice(random.choices([closing or likely, likely, solid, may], [6, 3, 2, 1])[0])
        assert side.takes(token)
        tokens.append(token)
    return tokens


def refused(side, tokens):
    """Return the text up to the first token that `side` does not take; None if it takes all."""
    for index, token in enumerate(tokens):
        if not side.takes(token):
            return bytes(byte for byte in tokens[: index + 1] if byte < END)
    return None


def both(schema, told=None):
    """Return the schema that both sides are sent, and the device's grammar; skip what cannot be handed over."""
    grammar = explicit_grammar(Grammar(GrammarKind.JSON, json.dumps(schema)), told)
    assume(grammar.differs is None)
    return json.loads(grammar.text), grammar


@examples(200)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_the_device_takes_all_that_the_cloud_writes(schema, seed):
    sent, grammar = both(schema)
    random = Random(seed)
    for _ in range(3):
        assert refused(Device(grammar), written(Cloud(sent), random)) is None


@examples(100)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_the_cloud_takes_what_the_device_writes(schema, seed):
    """But for what JSON can spell in two ways: those values are compared in one spelling."""
    sent, grammar = both(schema)
    random = Random(seed)
    for _ in range(2):
        tokens = written(Device(grammar), random, avoid={BACKSLASH})
        text = bytes(token for token in tokens if token < END)
        if tokens[-1:] == [END] and (said := plain(json.loads(text))) is not None:
            assert refused(Cloud(sent), [*said.encode(), END]) is None, (sent, said)


def plain(value):
    """Return `value` as xgrammar spells constants; None with a number that xgrammar would not write.

    Between bounds it writes six decimals at most, and no exponent.
    """
    said = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return None if re.search(r"Infinity|\d[eE]|\.\d{7}", said) else said.replace("-0.0", "0")


@examples(100)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_the_cloud_means_by_it_what_it_meant_by_the_schema(schema, seed):
    sent, _ = both(schema)
    assume("zz" not in json.dumps(schema))  # xgrammar forgets required properties without a schema
    assert refused(Cloud(schema_with_open_objects(schema)), written(Cloud(sent), Random(seed))) is None


def schema_with_open_objects(node):
    """Let an object or array that names nothing hold anything: at some places xgrammar leaves it empty."""
    if isinstance(node, list):
        return [schema_with_open_objects(one) for one in node]
    if not isinstance(node, dict):
        return node
    made = {name: schema_with_open_objects(one) for name, one in node.items()}
    kinds = made.get("type")
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if "object" in kinds and "properties" not in made and not isinstance(made.get("type"), dict):
        made.setdefault("additionalProperties", True)
    if "array" in kinds and "prefixItems" not in made:
        made.setdefault("items", {})
    return made


@examples(60)
@given(schema=SCHEMAS, seed=st.integers(0, 2**32))
def test_without_white_space_too(schema, seed):
    sent, grammar = both(schema, StructuredOutputs(backend="xgrammar", disable_any_whitespace=True))
    assert refused(Device(grammar), written(Cloud(sent, compact=True), Random(seed))) is None


@pytest.mark.parametrize(
    "text", [r'{"a": "\/"}', r'{"a": "\u00e9\u4e2d\ud83d\ude00x"}', '{"a": "\x7f"}', '{"a": "é"}']
)
def test_the_cloud_s_way_to_spell_a_string(text):
    grammar = explicit_grammar(
        Grammar(GrammarKind.JSON, json.dumps({"type": "object", "properties": {"a": {"type": "string"}}})), None
    )
    sent = json.loads(grammar.text)
    tokens = [*text.encode(), END]
    assert refused(Cloud(sent), tokens) is None
    assert refused(Device(grammar), tokens) is None
    assert ENGINE.matcher(grammar).advance(tokens) is None


@pytest.mark.parametrize("kind", ["regex", "choice"])
def test_choices_and_plain_patterns(kind):
    text = {"regex": r"[a-c]{2}\d+(x|yz)?", "choice": json.dumps(["a b", "é", 'q"', "a"])}[kind]
    grammar = explicit_grammar(Grammar(GrammarKind(kind), text), None)
    assert grammar.differs is None
    alternatives = (
        " | ".join(json.dumps(one, ensure_ascii=False) for one in json.loads(text)) if kind == "choice" else ""
    )
    compiled = (
        COMPILER.compile_regex(text) if kind == "regex" else COMPILER.compile_grammar(f"root ::= {alternatives}")
    )
    cloud = Cloud({})
    for seed in range(40):
        cloud._matcher = xgrammar.GrammarMatcher(compiled)
        assert refused(Device(grammar), written(cloud, Random(seed))) is None
        cloud._matcher = xgrammar.GrammarMatcher(compiled)
        assert refused(cloud, written(Device(grammar), Random(seed))) is None
