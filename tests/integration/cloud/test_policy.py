"""The example package from examples/ is installed beside the server."""

from cloud_support import PROMPTS, complete, new_id, state_of


def test_a_third_partys_policy_decides_for_its_requests_only(client):
    theirs = complete(client, budget=20, handoff_id=f"batch-{new_id()}", prompt=PROMPTS[1])
    assert (len(theirs.token_ids), theirs.stop_reason) == (4, "pdd_handoff")
    assert state_of(client, theirs.handoff_id)["decode_budget"] == {"tokens": 4, "set_by": "batch_budget"}
    assert len(complete(client, budget=20, prompt=PROMPTS[1]).token_ids) == 20
