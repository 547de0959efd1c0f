import pytest
from kv_cells import geometry
from pydantic import ValidationError

from pdd_core.errors import SchemaVersionError
from pdd_core.handoff import (
    SCHEMA_VERSION,
    CloudInfo,
    HandoffState,
    KVCells,
    NoRefinement,
    Refinement,
    VocabularyPiece,
)
from pdd_core.kv.geometry import NoKV
from pdd_core.schema_version import check_version

STATE = {
    "handoff_id": "h" * 32, "request_id": "cmpl-1", "model": "m", "tokenizer": "d", "created": 1.0, "expires": 2.0,
    "status": "running", "prompt_token_ids": [1, 2], "output_token_ids": [3],
    "sampling_params": {"temperature": 0.0},
    "refinement": {"kind": "none", "reason": "not_enabled", "message": "off"},
}  # fmt: skip


def test_unknown_fields_are_ignored():
    state = HandoffState.model_validate({**STATE, "schema_version": "2.9", "new_in_2_9": {"a": 1}})
    assert state.output_token_ids == [3]
    assert isinstance(state.refinement, NoRefinement)


def test_a_higher_major_version_is_refused_with_advice():
    with pytest.raises(SchemaVersionError, match=r"newer than 2\.0.*upgrade pdd-device here"):
        HandoffState.model_validate({**STATE, "schema_version": "3.0"})


def test_a_lower_major_version_is_refused_too_with_advice_for_the_other_side():
    """In 1, a vocabulary's hashes were of something else: it would be a mismatch that is none."""
    with pytest.raises(SchemaVersionError, match=r"older than 2\.0.*upgrade pdd-device on the other side"):
        HandoffState.model_validate({**STATE, "schema_version": "1.0"})


def test_a_device_of_version_1_refuses_this_one_with_its_own_advice():
    with pytest.raises(SchemaVersionError, match="upgrade pdd-device here"):
        check_version(SCHEMA_VERSION, own="1.0")


def test_a_version_that_is_no_version_is_refused():
    with pytest.raises(SchemaVersionError):
        HandoffState.model_validate({**STATE, "schema_version": "latest"})


def test_a_refined_prompt_is_told_from_its_absence():
    refined = {"kind": "refined", "method": "attention", "ratio": 0.5, "kept_indices": [0], "kept_token_ids": [1],
               "protected": [(0, 1)], "window": 16, "layers": [12]}  # fmt: skip
    assert isinstance(HandoffState.model_validate({**STATE, "refinement": refined}).refinement, Refinement)


def test_the_state_survives_its_own_json():
    state = HandoffState.model_validate({**STATE, "output_logprobs": [{3: -0.5}]})
    assert HandoffState.model_validate_json(state.model_dump_json()) == state


def test_tokens_cross_as_hexadecimal_digits():
    piece = VocabularyPiece(start=0, tokens=[b"\xc3", None, b""])
    assert piece.model_dump_json() == '{"start":0,"tokens":["c3",null,""]}'
    assert VocabularyPiece.model_validate_json(piece.model_dump_json()) == piece


@pytest.mark.parametrize("token", ["xy", "c", 7, ["c3"]])
def test_tokens_that_are_no_digits_are_refused(token):
    with pytest.raises(ValidationError):
        VocabularyPiece.model_validate({"start": 0, "tokens": [token]})


INFO = {
    "plugin_version": "0.1.0", "engine": "vllm 0.32.0", "model": "m", "max_model_len": 64, "refinement": "off",
    "features": ["kv"], "limits": {"max_decode_budget": 1, "max_handoffs": 1, "ttl_s": 1, "cancel_timeout_s": 1},
    "tokenizer": {"size": 1, "pieces": ["0" * 64], "special_ids": [], "eos_ids": [0], "holes": [], "digest": "d"},
}  # fmt: skip
NONE = NoKV(reason="lora", message="m")


@pytest.mark.parametrize("kv", [None, KVCells(tokens=7), NONE])
def test_a_state_says_what_becomes_of_the_kv_cache(kv):
    state = HandoffState.model_validate(STATE | ({} if kv is None else {"kv": kv.model_dump()}))
    assert state.kv == kv
    assert HandoffState.model_validate_json(state.model_dump_json()) == state


@pytest.mark.parametrize("kv", [None, geometry(), NONE])
def test_a_server_says_what_its_cells_look_like_or_why_it_has_none(kv):
    info = CloudInfo.model_validate(INFO | ({} if kv is None else {"kv": kv.model_dump()}))
    assert info.kv == kv
    assert CloudInfo.model_validate_json(info.model_dump_json()) == info


@pytest.mark.parametrize(
    "kv", [{"kind": "blob"}, {"kind": "cells", "tokens": -1}, {"kind": "none", "reason": "pending", "message": ""}]
)
def test_an_unknown_kind_of_cells_is_refused(kv):
    with pytest.raises(ValidationError):
        HandoffState.model_validate({**STATE, "kv": kv})
