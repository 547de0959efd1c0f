import json
import random
from copy import deepcopy

import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st
from kv_cells import BY_HEADS, BY_LAYERS, FIELDS, WHOLE, geometry
from pydantic import TypeAdapter, ValidationError

from pdd_core.handoff import KVCells
from pdd_core.kv.geometry import KV_VERSION, KVGeometry, NoKV

ANSWER = TypeAdapter(KVGeometry | NoKV)


@pytest.mark.parametrize("parts", [WHOLE, BY_HEADS, BY_LAYERS])
def test_parts_that_have_each_head_of_each_layer_once_are_a_geometry(parts):
    made = geometry(parts)
    assert KVGeometry.model_validate_json(made.model_dump_json()) == made
    assert made.version == KV_VERSION
    assert sum(made.part_bytes(part) for part in range(len(parts))) == made.cell_bytes


def test_bytes_are_those_of_packed_rows():
    made = geometry(BY_HEADS, key_type="q8_0", value_type="q4_0")
    assert (made.head_bytes, made.cell_bytes, made.part_bytes(1)) == (34 + 18, 4 * (34 + 18), 2 * (34 + 18))


@pytest.mark.parametrize(
    ("parts", "fields", "problem"),
    [
        ((((0, 2), (0, 1)),), {}, "no part has some head"),
        ((*WHOLE, ((1, 2), (1, 2))), {}, "two parts have the same head"),
        ((((0, 3), (0, 2)),), {}, "layers that the model does not have"),
        ((((1, 1), (0, 2)),), {}, "layers that the model does not have"),
        ((((0, 2), (0, 3)),), {}, "heads that the model does not have"),
        ((((0, 2), (2, 0)),), {}, "heads that the model does not have"),
        ((), {}, "at least 1 item"),
        (WHOLE, {"head_size": 48}, "no whole blocks of q8_0"),
        (WHOLE, {"key_rotation": 24}, "cannot be rotated in pieces of 24"),
        (WHOLE, {"value_rotation": 64}, "cannot be rotated in pieces of 64"),
        (WHOLE, {"key_type": "q5_1"}, "'f16', 'q8_0' or 'q4_0'"),
        (WHOLE, {"head_size": 0}, "greater than or equal to 1"),
        (WHOLE, {"num_layers": 10**9}, "less than or equal to 512"),
        (WHOLE, {"piece_tokens": 64}, "Input should be 128"),
        (WHOLE, {"rope": {"theta": float("inf"), "rotary_dim": 32}}, "finite number"),
        (WHOLE, {"rope": {"theta": 1e4, "rotary_dim": 32, "pairs": "neighbours"}}, "'halves'"),
        (WHOLE, {"rope": {"theta": 1e4, "rotary_dim": 32, "scaling": "a\nb"}}, "match pattern"),
    ],
)
def test_what_cannot_be_is_refused(parts, fields, problem):
    with pytest.raises(ValidationError, match=problem):
        geometry(parts, **fields)


def test_heads_of_48_can_be_handed_over_in_f16():
    assert geometry(head_size=48, key_type="f16", value_type="f16").head_bytes == 4 * 48


@pytest.mark.parametrize("reason", ["gone", "not_captured", "lora"])
def test_why_there_are_none_is_told_from_a_geometry(reason):
    told = ANSWER.validate_json(NoKV(reason=reason, message="m").model_dump_json())
    assert (told.kind, told.reason) == ("none", reason)
    assert KVCells(tokens=3).kind == "cells"


@pytest.mark.parametrize("reason", ["", "because", None])
def test_another_reason_is_refused(reason):
    with pytest.raises(ValidationError):
        NoKV(reason=reason, message="m")


ODD = [
    None,
    True,
    -1,
    0,
    1,
    2,
    3,
    31,
    32,
    33,
    128,
    10**9,
    2**80,
    1.5,
    1e308,
    "",
    "q8_0",
    "f16",
    "x" * 1000,
    [],
    {},
    [0, 2],
]


def mutated(chance):
    """A handshake in which something was changed, lost, repeated or added."""
    told = json.loads(geometry(chance.choice((WHOLE, BY_HEADS, BY_LAYERS))).model_dump_json())
    for _ in range(chance.randint(1, 3)):
        parts = told.get("parts")
        where = chance.choice([told, told.get("rope"), *(parts if isinstance(parts, list) else ())])
        if not isinstance(where, dict) or not where:
            continue
        name = chance.choice(sorted(where))
        change = chance.randint(0, 3)
        if change == 0:
            where.pop(name)
        elif change == 1:
            where[name] = deepcopy(chance.choice(ODD))
        elif change == 2 and isinstance(where[name], list):
            where[name] = where[name] * chance.choice((2, 300))
        elif isinstance(where[name], list) and where[name]:
            where[name][chance.randrange(len(where[name]))] = deepcopy(chance.choice(ODD))
    return told


@examples(125)
@given(st.integers(0, 2**32))
def test_any_handshake_is_a_consistent_geometry_or_refused_by_type(seed):
    """Forty of them with each seed: 5,000 in a usual run."""
    chance = random.Random(seed)
    for _ in range(40):
        told = json.dumps(mutated(chance)).encode()
        if chance.random() < 0.2:
            told = told[: chance.randrange(len(told))]
        try:
            made = KVGeometry.model_validate_json(told)
        except ValidationError:
            continue
        assert made.version == KV_VERSION or len(made.version) <= 16
        assert sum(made.part_bytes(part) for part in range(len(made.parts))) == made.cell_bytes
        assert {**FIELDS, "parts": ()}.keys() <= made.model_dump().keys()
