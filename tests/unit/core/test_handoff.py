import pytest

from pdd_core.errors import SchemaVersionError
from pdd_core.handoff import HandoffState, NoRefinement, Refinement

STATE = {
    "handoff_id": "h" * 32, "request_id": "cmpl-1", "model": "m", "tokenizer": "d", "created": 1.0, "expires": 2.0,
    "status": "running", "prompt_token_ids": [1, 2], "output_token_ids": [3],
    "sampling_params": {"temperature": 0.0},
    "refinement": {"kind": "none", "reason": "not_enabled", "message": "off"},
}  # fmt: skip


def test_unknown_fields_are_ignored():
    state = HandoffState.model_validate({**STATE, "schema_version": "1.9", "new_in_1_9": {"a": 1}})
    assert state.output_token_ids == [3]
    assert isinstance(state.refinement, NoRefinement)


def test_a_higher_major_version_is_refused_with_advice():
    with pytest.raises(SchemaVersionError, match="upgrade pdd-device"):
        HandoffState.model_validate({**STATE, "schema_version": "2.0"})


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
