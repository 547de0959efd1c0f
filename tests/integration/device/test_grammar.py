"""Answers in a grammar, made by llama.cpp and followed by llguidance over the real vocabulary."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pdd_core.errors import DeviceEngineFailed, InvalidGrammar
from pdd_llamacpp_adapter.engine.grammar import GrammarEngine
from pdd_llamacpp_adapter.engine.sampler import Sampler
from pdd_llamacpp_adapter.request import AnswerRequest, Grammar, GrammarKind

pytestmark = pytest.mark.anyio
jsonschema = pytest.importorskip("jsonschema")

MAX_TOKENS = 40
ANSWERS_PER_SCHEMA = 25
SCHEMAS = {
    "object": {
        "type": "object",
        "properties": {"river": {"type": "string", "maxLength": 12}, "long": {"type": "boolean"}},
        "required": ["river", "long"],
        "additionalProperties": False,
    },
    "enum": {
        "type": "object",
        "properties": {
            "city": {"enum": ["Köln", "São Paulo", "東京", "Ω🚀"]},
            "n": {"type": ["integer", "null"], "minimum": 0, "maximum": 999},
        },
        "required": ["city"],
        "additionalProperties": False,
    },
    "array": {
        "type": "array",
        "items": {"type": "string", "pattern": "^[a-zäöü日]{1,5}$"},
        "minItems": 1,
        "maxItems": 2,
    },
    "reference": {
        "$defs": {
            "point": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 99}, "maxItems": 2}
        },
        "anyOf": [{"type": "number", "multipleOf": 0.25, "minimum": -9, "maximum": 9}, {"$ref": "#/$defs/point"}],
    },
}


@pytest.fixture(scope="module")
def grammars(loaded):
    return GrammarEngine(loaded.vocab, loaded.vocab.stop_ids)


@pytest.fixture(scope="module")
def question(loaded):
    return loaded.vocab.tokenize("A river, a city and some numbers, as compact JSON without blanks: ")


def schema_of(value):
    # compact, so that blanks do not use up the few tokens
    return Grammar(
        GrammarKind.JSON, json.dumps({**value, "x-guidance": {"whitespace_flexible": False}}, ensure_ascii=False)
    )


async def answer_cut_at(engine, grammars, request, cut):
    """Make an answer; after `cut` tokens throw sampler and matcher away, and go on with new ones."""
    stop_ids = engine.vocab.stop_ids
    await engine.slots[0].memory.start(request.prompt_token_ids)
    ids, pending = [], request.prompt_token_ids[engine.slots[0].memory.n_past :]
    sampler = Sampler(request, stop_ids=stop_ids, matcher=grammars.matcher(request.grammar))
    while len(ids) < request.max_tokens:
        if len(ids) == cut:
            matcher = grammars.matcher(request.grammar)
            assert matcher.advance(ids) is None
            sampler = Sampler(request, stop_ids=stop_ids, output=ids, matcher=matcher)
        logits = await engine.slots[0].extend(pending, want_logits=True)
        pending = [sampler.sample(logits)[0]]
        ids += pending
        if ids[-1] in stop_ids:
            break
    return ids


@pytest.mark.parametrize("name", SCHEMAS)
async def test_answers_cut_at_random_positions_all_validate(loaded, grammars, question, name):
    random = np.random.default_rng(list(name.encode()))
    continued = 0
    for seed in range(ANSWERS_PER_SCHEMA):
        request = AnswerRequest(
            prompt_token_ids=question,
            max_tokens=MAX_TOKENS,
            temperature=0.9,
            seed=seed,
            grammar=schema_of(SCHEMAS[name]),
        )
        cut = int(random.integers(1, 12))
        ids = await answer_cut_at(loaded, grammars, request, cut)
        assert ids[-1] in loaded.vocab.stop_ids
        text = b"".join(map(loaded.vocab.piece, ids)).decode()
        jsonschema.validate(json.loads(text), SCHEMAS[name])
        continued += len(ids) > cut
    assert continued > ANSWERS_PER_SCHEMA // 4  # that many were cut before their end


async def test_a_cut_does_not_change_a_seeded_answer(loaded, grammars, question):
    request = AnswerRequest(
        prompt_token_ids=question, max_tokens=20, temperature=0.9, seed=5, grammar=schema_of(SCHEMAS["object"])
    )
    whole = await answer_cut_at(loaded, grammars, request, cut=0)
    for cut in (1, len(whole) // 2, len(whole) - 1):
        assert await answer_cut_at(loaded, grammars, request, cut) == whole


def test_another_tokenisation_of_the_same_bytes_is_accepted(loaded, grammars):
    """The cloud need not split text as the device would."""
    vocab = loaded.vocab
    text = '{"city":"東京","n":12}'
    words = vocab.tokenize(text)
    single = {vocab.piece(token): token for token in reversed(range(vocab.size)) if len(vocab.piece(token)) == 1}
    pieces = [single[bytes([byte])] for byte in text.encode()]
    assert len(pieces) > len(words)
    for ids in (words, pieces):
        for cut in range(len(ids) + 1):
            matcher = grammars.matcher(schema_of(SCHEMAS["enum"]))
            assert matcher.advance(ids[:cut]) is None
            assert matcher.advance([*ids[cut:], vocab.eos_id]) is None


@pytest.mark.parametrize("foreign", ["eos", "control", "text", "padding", "negative", "huge"])
def test_a_foreign_token_is_reported(loaded, grammars, foreign):
    vocab = loaded.vocab
    token = {
        "eos": vocab.eos_id,
        "control": next(i for i in range(vocab.size) if vocab.is_special(i) and i not in vocab.stop_ids),
        "text": vocab.tokenize("x")[0],
        "padding": vocab.size,
        "negative": -1,
        "huge": 2**40,
    }[foreign]
    begun = vocab.tokenize('{"river')
    matcher = grammars.matcher(schema_of(SCHEMAS["object"]))
    assert matcher.advance([*begun, token, token]) == len(begun)
    assert matcher.rejected
    with pytest.raises(DeviceEngineFailed):
        matcher.mask(vocab.size)


@pytest.mark.parametrize(
    "grammar",
    [
        Grammar(GrammarKind.JSON, "{"),
        Grammar(GrammarKind.JSON, '{"type": "nonsense"}'),
        Grammar(GrammarKind.JSON, '{"items":' * 5_000 + "{}" + "}" * 5_000),
        Grammar(GrammarKind.REGEX, "("),
        Grammar(GrammarKind.GRAMMAR, "start: nothing"),
        Grammar(GrammarKind.GRAMMAR, 'root ::= "a'),
        Grammar(GrammarKind.GRAMMAR, "start: <|nope|>"),
    ],
    ids=lambda grammar: grammar.text[:20],
)
def test_a_malformed_grammar_is_a_typed_error(grammars, grammar):
    with pytest.raises(InvalidGrammar) as caught:
        grammars.matcher(grammar)
    assert caught.value.param == "response_format"


def test_the_models_special_tokens_can_be_asked_for_by_name(loaded, grammars):
    wanted = next(i for i in range(loaded.vocab.size) if loaded.vocab.is_special(i))
    matcher = grammars.matcher(Grammar(GrammarKind.GRAMMAR, f'start: {loaded.vocab.raw_tokens[wanted]} "a"'))
    assert np.flatnonzero(matcher.mask(loaded.vocab.size)).tolist() == [wanted]


async def test_without_a_grammar_greedy_is_the_most_likely_token(loaded, question):
    loaded.reset()
    logits = await loaded.slots[0].extend(question, want_logits=True)
    request = AnswerRequest(prompt_token_ids=question, max_tokens=4)
    assert Sampler(request, stop_ids=()).sample(logits.copy()) == (int(logits.argmax()), None)
    _, found = Sampler(replace(request, logprobs=3), stop_ids=()).sample(logits.copy())
    assert found.chosen == found.top[0]
    assert len(found.top) == 3
