from __future__ import annotations

import json
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import DeviceEngineFailed, InvalidGrammar
from pdd_llamacpp_adapter.engine import grammar_limits as limits
from pdd_llamacpp_adapter.engine.grammar import GrammarEngine
from pdd_llamacpp_adapter.request import Grammar, GrammarKind
from pdd_llamacpp_adapter.server.tools.call_format import JsonShape
from pdd_llamacpp_adapter.server.tools.tool_schema import call_or_words

END, ALSO_END, THINK = 256, 257, 258
WORDS = [b'{"', b'":', b'"}', b"name", b"12", b"true", "é".encode() + b'"', b'", "', "日".encode()[:2], b" " * 8]
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "n": {"type": "integer"}},
    "required": ["name", "n"],
    "additionalProperties": False,
}
DRAFT = "https://json-schema.org/draft/2020-12/schema"


class ByteVocabulary:
    """Every byte, three special tokens, and some words."""

    raw_tokens = (*("x" * 256), "<end>", "<also_end>", "<think>", *("w" * len(WORDS)))
    size = len(raw_tokens)
    bos_id = -1

    def __init__(self):
        self.reads = 0

    def piece(self, token):
        self.reads += token == 0
        if token < 256:
            return bytes([token])
        return b"" if token <= THINK else WORDS[token - THINK - 1]

    def is_special(self, token):
        return END <= token <= THINK

    def tokenize(self, text):
        return list(text.encode())


VOCABULARY = ByteVocabulary()
ENGINE = GrammarEngine(VOCABULARY, [END, ALSO_END, -1, 10_000])


@pytest.fixture
def engine():
    return ENGINE


def schema(value):
    return Grammar(GrammarKind.JSON, json.dumps(value))


def regex(text):
    return Grammar(GrammarKind.REGEX, text)


def lark(text):
    return Grammar(GrammarKind.GRAMMAR, text)


def allowed(matcher, size=ByteVocabulary.size):
    return set(np.flatnonzero(matcher.mask(size)).tolist())


def walk(matcher, seed, most=60):
    """A random answer: some allowed token at each step; ends are taken last."""
    noise, ids = np.random.default_rng(seed), []
    while len(ids) < most:
        ends = {END, ALSO_END}
        following = sorted(allowed(matcher) - ends) or sorted(allowed(matcher))
        ids.append(int(noise.choice(following)))
        assert matcher.advance(ids[-1:]) is None
        if ids[-1] in ends:
            break
    return ids


def test_the_mask_follows_the_answer(engine):
    matcher = engine.matcher(regex("ab?"))
    assert allowed(matcher) == {ord("a")}
    assert matcher.advance([ord("a")]) is None
    assert allowed(matcher) == {ord("b"), END, ALSO_END}


def test_only_an_end_may_follow_a_complete_answer(engine):
    matcher = engine.matcher(regex("a"))
    assert matcher.advance([ord("a")]) is None
    assert allowed(matcher) == {END, ALSO_END}
    assert matcher.advance([END]) is None
    assert allowed(matcher) == {END, ALSO_END}
    assert matcher.advance([ALSO_END]) is None


def test_an_end_is_accepted_where_the_answer_may_end_and_only_there(engine):
    assert engine.matcher(regex("ab?")).advance([ord("a"), END]) is None
    assert engine.matcher(regex("ab")).advance([ord("a"), END]) == 1
    assert engine.matcher(regex("ab?")).advance([ord("a"), END, ord("b")]) == 2


@pytest.mark.parametrize("size", [10, 31, 32, 256, ByteVocabulary.size, 1000])
def test_the_mask_has_the_size_of_the_logits(engine, size):
    mask = engine.matcher(regex("[\x01-\x7f]")).mask(size)
    assert mask.shape == (size,)
    assert mask.dtype == bool
    assert np.flatnonzero(mask).tolist() == list(range(1, min(size, 128)))


@pytest.mark.parametrize("foreign", [ord("x"), THINK, -1, 100_000, 2**31, 2**70])
def test_a_foreign_token_is_named_and_ends_the_matcher(engine, foreign):
    matcher = engine.matcher(regex("a*"))
    assert matcher.advance([97, 97, foreign, 97]) == 2
    assert matcher.rejected
    assert matcher.advance([97]) == 0
    with pytest.raises(DeviceEngineFailed):
        matcher.mask(ByteVocabulary.size)


def test_an_accepted_replay_is_not_rejected(engine):
    matcher = engine.matcher(regex("a*"))
    assert matcher.advance([97] * 500) is None
    assert not matcher.rejected
    assert matcher.advance([]) is None


@given(st.integers(0, 2**32), st.data())
def test_a_replay_from_ids_alone_stands_where_the_first_one_stood(seed, data):
    """Cut anywhere: inside a word, a string or a character."""
    engine = ENGINE
    ids = walk(engine.matcher(schema(SCHEMA)), seed)
    cut = data.draw(st.integers(0, len(ids)))
    first, second = engine.matcher(schema(SCHEMA)), engine.matcher(schema(SCHEMA))
    for token in ids[:cut]:
        assert first.advance([token]) is None
    assert second.advance(ids[:cut]) is None
    assert allowed(first) == allowed(second)
    assert second.advance(ids[cut:]) is None


@pytest.mark.parametrize("seed", range(20))
def test_random_answers_are_valid(engine, seed):
    ids = walk(engine.matcher(schema(SCHEMA)), seed, most=400)
    if ids[-1] in (END, ALSO_END):
        answer = json.loads(b"".join(ByteVocabulary().piece(token) for token in ids))
        assert set(answer) == {"name", "n"}
        assert isinstance(answer["name"], str)
        assert isinstance(answer["n"], int)


def test_a_special_token_is_never_text_but_can_be_asked_for(engine):
    assert THINK not in allowed(engine.matcher(regex(".*")))
    assert allowed(engine.matcher(lark('start: <think> "a"'))) == {THINK}


def test_whitespace_is_flexible_as_vllms_default(engine):
    assert engine.matcher(schema(SCHEMA)).advance(list(b'{\n  "name" : "a",\t"n":1 }')) is None


def test_any_json_object(engine):
    matcher = engine.matcher(Grammar(GrammarKind.JSON_OBJECT))
    assert matcher.advance(list(b'{"a": [1, null, {"b": "c"}]}')) is None
    assert engine.matcher(Grammar(GrammarKind.JSON_OBJECT)).advance(list(b"[1]")) == 0


@pytest.mark.parametrize("checked", [False, True])
def test_a_checked_grammar_is_not_compiled_again(checked, monkeypatch):
    engine = GrammarEngine(ByteVocabulary(), [END])
    compiled, check = [], limits.check_limits
    monkeypatch.setattr(
        "pdd_llamacpp_adapter.engine.grammar.check_limits",
        lambda grammar: (compiled.append(grammar), check(grammar)),
    )
    if checked:
        engine.check(regex("ab"))
    first, second = engine.matcher(regex("ab")), engine.matcher(regex("ab"))
    assert len(compiled) == 2  # each answer has its own
    assert first.advance([ord("a")]) is None
    assert second.advance([ord("b")]) == 0


def test_only_so_many_checked_grammars_wait_for_their_answers():
    engine = GrammarEngine(ByteVocabulary(), [END])
    for number in range(100):
        engine.check(regex(f"a{number}"))
    assert len(engine._checked) < 100
    with pytest.raises(InvalidGrammar):
        engine.check(regex("("))


BAD = {
    "not json": Grammar(GrammarKind.JSON, "{nope"),
    "empty": Grammar(GrammarKind.JSON, ""),
    "no schema": schema([1]),
    "unknown type": schema({"type": "nonsense"}),
    "unsatisfiable": schema({"type": "integer", "minimum": 5, "maximum": 1}),
    "circular": schema({"$ref": "#"}),
    "dangling": schema({"$ref": "#/$defs/nothing"}),
    "nothing fits": regex(r"[^\s\S]"),
    "open group": regex("("),
    "look-ahead": regex("(?=a)b"),
    "not unicode": regex("\ud800"),
    "no lark": lark("start"),
    "empty lark": lark(""),
    "rule of itself": lark("start: start"),
    "unknown rule": lark("start: nothing"),
    "unknown special token": lark("start: <|nope|>"),
    "token id beyond the vocabulary": lark("start: <[99999999]>"),
    # those below crash or choke llguidance
    "deep": Grammar(GrammarKind.JSON, '{"items":' * 100_000 + "{}" + "}" * 100_000),
    "deeper than vLLM": Grammar(GrammarKind.JSON, '{"items":' * 65 + "{}" + "}" * 65),
    "long chain of references": schema(
        {"$ref": "#/$defs/0", "$defs": {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(1200)}}
    ),
    "references and nesting": schema(
        {
            "$ref": "#/$defs/0",
            "$defs": {
                str(i): {"anyOf": [{"anyOf": [{"items": {"$ref": f"#/$defs/{i + 1}"}}]}]} for i in range(700)
            },
        }
    ),
    "many items": schema({"type": "array", "minItems": 10**8}),
    "many items, in many arrays": schema({"anyOf": [{"type": "array", "maxItems": 4_000}] * 3}),
    "constant below 64 bits": schema({"type": "integer", "const": -(10**19)}),
    "constant at the end of 64 bits": schema({"type": "integer", "const": -(2**63) + 1}),
    "float below 64 bits": schema({"type": "integer", "enum": [1, -1e308]}),
    "constants in a constant": schema({"properties": {"a": {"type": "integer"}}, "const": {"a": [-1e30]}}),
    "constant in lark": lark('start: %json {"type":"integer","const":-1e30}'),
    "many patterns": schema({"allOf": [{"pattern": f"a{i}"} for i in range(65)]}),
    "long patterns": schema({"anyOf": [{"type": "string", "pattern": "a?" * 3_000}] * 2}),
    "long pattern": regex("a?" * 20_000),
    "huge number": Grammar(GrammarKind.JSON, '{"minItems": 1' + "0" * 5_000 + "}"),
    "many rules": lark("start: a0\n" + "\n".join(f"a{i}: a{i + 1}" for i in range(1_100)) + '\na1100: "a"'),
    "many groups": lark("start: a0\n" + "\n".join(f"a{i}:((((a{i + 1}))))" for i in range(500)) + '\na500: "a"'),
    "repetition": lark('start: A{10000}\nA: "x"{10000}'),
    "hidden repetition": lark('start: A{ // so few\n 1, // or\n 10000}\nA: "x"'),
    "repetition of tildes": lark('start: a ~ 1 .. 5000\na: "x"'),
    "endless number": lark("start: A{1" + "0" * 5_000 + '}\nA: "x"'),
    "blanks": lark("start: A{" + " " * 16_000),
    "items in lark": lark('start: %json {"type":"array","maxItems":10000000}'),
    "escaped items in lark": lark('start: %json {"type":"array","max\\u0049tems":10000000}'),
    "long": lark("start: " + '"a"' * 10_000),
}


@pytest.mark.parametrize("grammar", BAD.values(), ids=BAD)
def test_a_bad_grammar_is_a_typed_error_with_a_short_message(engine, grammar):
    with pytest.raises(InvalidGrammar) as caught:
        engine.matcher(grammar)
    assert caught.value.param == "response_format"
    assert 20 < len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


def chained_schema(links):
    inner = {str(i): {"items": {"$ref": f"#/$defs/{i + 1}"}} for i in range(links)}
    return schema({"$ref": "#/$defs/0", "$defs": {**inner, str(links): {"type": "integer"}}})


def chained_rules(links, group="{}"):
    rules = "\n".join(f"a{i}:" + group.format(f"a{i + 1}") for i in range(links))
    return lark(f'start:a0\n{rules}\na{links}:"a"')


LARGEST = {
    "least constant": schema({"type": "integer", "const": limits.LEAST_CONSTANT}),
    "references": chained_schema((limits.MAX_CHAIN - 6) // 2),
    "nesting": Grammar(GrammarKind.JSON, '{"items":' * 63 + "{}" + "}" * 63),
    "items": schema({"type": "array", "maxItems": limits.MAX_ITEMS}),
    "rules": chained_rules(limits.MAX_LARK_LEVELS // 2 - 2),
    "groups": chained_rules(limits.MAX_LARK_LEVELS // 8 - 2, "(((((({}))))))"),
    "repetition": lark(f'start: A\nA: "x"{{{limits.MAX_LARK_REPETITION}}}'),
}


@pytest.mark.parametrize("grammar", LARGEST.values(), ids=LARGEST)
def test_grammars_at_the_limits_compile_on_a_thread_of_ordinary_size(engine, grammar):
    masks = []
    thread = threading.Thread(target=lambda: masks.append(allowed(engine.matcher(grammar))))
    thread.start()
    thread.join()
    assert masks
    assert masks[0]


def test_the_vocabulary_is_read_once_by_many_threads():
    vocab = ByteVocabulary()
    engine = GrammarEngine(vocab, [END])
    threads = [threading.Thread(target=engine.matcher, args=(regex("a"),)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert vocab.reads == 1


def test_without_an_end_of_sequence_there_are_no_grammars():
    with pytest.raises(InvalidGrammar, match="no end-of-sequence"):
        GrammarEngine(ByteVocabulary(), [-1]).matcher(regex("a"))


NAMED = {"$schema": DRAFT, "$id": "https://example.org/a", "properties": {"name": {"$ref": "#/$defs/name"}}}
REFERRING = schema({**NAMED, "type": "object", "$defs": {"name": {"type": "string", "maxLength": 6}}})


@pytest.mark.parametrize("shape", [JsonShape(), JsonShape(field="parameters"), JsonShape(listed=True)])
@pytest.mark.parametrize("words", [REFERRING, Grammar(GrammarKind.JSON_OBJECT)])
def test_a_call_or_words_can_be_followed_as_either(engine, shape, words):
    zone = {"properties": {"zone": {"$ref": "#/$defs/zone"}}, "$defs": {"zone": {"enum": ["UTC"]}}}
    tool = {"name": "clock", "parameters": {"type": "object", "$id": "https://example.org/b", **zone}}
    grammar = call_or_words([tool], words, shape, parallel=True)
    call = json.dumps({"name": "clock", shape.field: {"zone": "UTC"}})
    for text in (f"[{call}]" if shape.listed else call, '{"name": "cl", "n": 1}'):
        matcher = engine.matcher(grammar)
        assert matcher.advance([*text.encode(), END]) is None


@pytest.mark.parametrize("text", [r'{"name":"\/\u00e9","n":1}', '{"name":"\x7f","n":1}'])
def test_the_cloud_s_way_to_spell_a_string_fits(engine, text):
    open_ended = {**SCHEMA, "properties": {"name": {"type": "string"}, "n": {"type": "integer"}}}
    whole, by_token = engine.matcher(schema(open_ended)), engine.matcher(schema(open_ended))
    assert whole.advance([*text.encode(), END]) is None
    assert [by_token.advance([byte]) for byte in text.encode()] == [None] * len(text)
    assert by_token.mask(VOCABULARY.size)[END]
    assert by_token.advance([ord("x")]) == 0


def test_only_json_is_respelt(engine):
    matcher = engine.matcher(Grammar(GrammarKind.REGEX, '"[a-z]"'))
    assert matcher.advance(list(b'"\x7f')) == 1


def test_a_choice_is_one_of_its_texts(engine):
    choice = Grammar(GrammarKind.CHOICE, json.dumps(["a b", 'q"', "é"]))
    for text, fits in {"a b": None, 'q"': None, "é": None, "ab": 1}.items():
        assert engine.matcher(choice).advance([*text.encode(), END]) == fits


def test_compact_json_has_at_most_a_space_behind_a_separator(engine):
    compact = Grammar(GrammarKind.JSON_OBJECT, compact=True)
    for text, fits in {'{"a":1,"b":[1, 2]}': None, '{"a": 1}': None, '{ "a"': 1, '{"a" :': 4}.items():
        assert engine.matcher(compact).advance(list(text.encode())) == fits
