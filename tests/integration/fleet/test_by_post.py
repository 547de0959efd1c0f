"""What passes a router that knows OpenAI's routes alone: all that a device asks for is a POST to one of them."""

import httpx2
import openai
import pytest
from cloud_support import KEY, new_id

from pdd_core.handoff import CloudInfo, HandoffUpdate, Status

GREEDY = {"model": "smollm2", "prompt": "Once upon a time", "temperature": 0, "stream": True}


@pytest.fixture
def session():
    """All that belongs to one handoff."""
    return {"X-Session-ID": new_id()}


@pytest.fixture
def client(behind_router, session):
    with openai.OpenAI(base_url=behind_router.url, api_key=KEY, max_retries=0, default_headers=session) as made:
        yield made


def ask(client, **xargs):
    """The answer to a request for a state, as OpenAI's own client would send it."""
    body = {"model": "smollm2", "prompt": "", "vllm_xargs": xargs}
    return client.post("/completions", body=body, cast_to=object)


def test_other_routes_lose_their_headers(behind_router, session):
    """Where this fails, vllm-router has learnt to pass them on: GET and DELETE can then be used behind it."""
    headers = {"Authorization": f"Bearer {KEY}", **session}
    assert httpx2.get(f"{behind_router.url}/pdd/info", headers=headers).status_code == 401
    assert httpx2.get(f"{behind_router.url}/models", headers=headers).status_code == 200


def test_a_key_is_asked_for(behind_router):
    stranger = openai.OpenAI(base_url=behind_router.url, api_key="another", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        ask(stranger, pdd_info=1)


def test_the_cloud_says_what_it_is(client):
    info = CloudInfo.model_validate(ask(client, pdd_info=1))
    assert {"inline", "by_post"} <= set(info.features)


def test_a_stream_brings_its_state_and_a_post_reads_it_again(client):
    handoff_id = new_id()
    xargs = {"pdd_handoff": handoff_id, "pdd_decode_budget": 6, "pdd_inline": 1}
    stream = client.completions.create(
        **GREEDY, max_tokens=40, extra_body={"vllm_xargs": xargs, "return_token_ids": True}
    )
    chunks = list(stream)
    made = [token for chunk in chunks for choice in chunk.choices for token in choice.token_ids]
    updates = [HandoffUpdate.model_validate(c.pdd) for c in chunks if getattr(c, "pdd", None)]
    assert len(made) == 6
    assert {update.handoff_id for update in updates} == {handoff_id}
    assert updates[0].decode_budget.tokens == 6
    assert updates[-1].status is Status.HANDED_OFF
    state = ask(client, pdd_read=handoff_id)
    assert state["status"] == "handed_off"
    assert state["output_token_ids"] == made


def test_a_post_cancels(behind_router, client):
    handoff_id = new_id()
    xargs = {"pdd_handoff": handoff_id, "pdd_decode_budget": 1500, "pdd_inline": 1}
    with client.completions.create(**GREEDY, max_tokens=1500, extra_body={"vllm_xargs": xargs}) as stream:
        next(chunk for chunk in stream if chunk.choices)
        done = ask(client, pdd_cancel=handoff_id, pdd_used=1)
    assert done["confirmed"] is True
    behind_router.wait_still()


def test_an_id_that_nobody_knows(client):
    for field in ("pdd_read", "pdd_cancel"):
        with pytest.raises(openai.NotFoundError):
            ask(client, **{field: new_id()})
