"""What a real vLLM writes to the shared store, read and cancelled through another server."""

import re

import pytest
from cloud_support import PROMPTS, complete, new_id, state_of, still
from fleet_replicas import Replica
from store_server import server_binary


@pytest.fixture
async def other(cloud, shared_store):
    """The plugin of another replica: it shares the store, and has no state of its own."""
    server_binary()  # says why there is none
    made = Replica(shared_store.url, cancel_timeout_s=60.0)
    await made.up()
    yield made
    await made.client.aclose()
    made.shared.stop()


def without_time(body):
    body.get("pdd", body).pop("expires")
    return body


@pytest.mark.anyio
async def test_a_state_with_its_refined_prompt_is_read_elsewhere_as_from_vllm(client, other):
    streamed = complete(client, budget=6, prompt=PROMPTS[1] * 3, xargs={"pdd_refine_ratio": 0.5})
    state = without_time(state_of(client, streamed.handoff_id, wait=30))
    assert (state["status"], state["refinement"]["kind"]) == ("handed_off", "refined")
    answer = await other.call("GET", f"/pdd/handoffs/{streamed.handoff_id}", wait=30)
    assert without_time(answer.json()) == state
    there = await other.call("GET", f"/chat/completions/{streamed.completion_id}")
    here = client.get(f"/chat/completions/{streamed.completion_id}", cast_to=object)
    assert without_time(there.json()) == without_time(here)


@pytest.mark.anyio
async def test_what_runs_in_vllm_is_read_and_cancelled_elsewhere_with_the_engines_word(cloud, client, other):
    handoff_id = new_id()
    stream = client.completions.create(
        model="smollm2", prompt=PROMPTS[0], max_tokens=2_000, temperature=0, stream=True,
        extra_body={"vllm_xargs": {"pdd_handoff": handoff_id, "pdd_decode_budget": 2_000}, "ignore_eos": True},
    )  # fmt: skip
    completion_id = next(iter(stream)).id
    path = f"/pdd/handoffs/{handoff_id}"
    assert (await other.call("GET", path)).json()["status"] == "running"
    answer = await other.call("DELETE", path)
    assert (answer.status_code, answer.json()["confirmed"]) == (200, True)
    made = sum(cloud.made_for(completion_id))
    stream.close()
    still(cloud)
    assert sum(cloud.made_for(completion_id)) == made < 2_000
    assert (await other.call("GET", path)).status_code == 404
    assert (await other.call("DELETE", path)).json()["confirmed"] is True


def test_vllms_metrics_say_that_the_store_answers(cloud, client, shared_store):
    server_binary()
    text = client.with_options(base_url=cloud.base_url.removesuffix("/v1")).get("/metrics", cast_to=str)
    assert re.search(r"^pdd_store_up(\{.*\})? 1\.0$", text, re.MULTILINE)
    assert "shared_store" in client.get("/pdd/info", cast_to=object)["features"]
