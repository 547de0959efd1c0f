"""A device behind a router that forwards little: one POST brings all it needs, and others ask and cancel."""

import math
from contextlib import aclosing

import anyio
import pytest
from cloud_support import KEY, new_id
from narrow_router import KNOWN, NarrowRouter
from near_ties import assert_same

from pdd_core.errors import CloudRefused
from pdd_core.optin import OptIn
from pdd_core.patience import Patience
from pdd_core.timeline import Source
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, CloudClient
from pdd_llamacpp_adapter.cloud.cloud_route import Way

pytestmark = pytest.mark.anyio

ROUTERS = {"drops headers": {"drops": "headers"}, "knows some routes": {"routes": KNOWN}}
FACTS = [f"Room {n} of the museum shows things that were found in the year {1700 + 7 * n}." for n in range(20)]
CHAT = [{"role": "user", "content": " ".join(FACTS) + "\n\nWhen were the things in room 13 found?"}]
WAIT = Patience(late_s=math.inf, first_token_s=120.0, device_step_s=240.0)


@pytest.fixture(params=ROUTERS)
def router(request, cloud):
    with NarrowRouter([cloud.base_url.removesuffix("/v1")], **ROUTERS[request.param]) as made:
        yield made


def forwarded(router):
    """What the router let through: method, path and session."""
    return [
        (one.method, one.path, one.headers.get("x-session-id"))
        for one in router.seen
        if one.status == 200 and one.path != "/v1/models"
    ]


async def test_an_answer_is_handed_over_whole(router, cloud, engine):
    prompt = engine.vocab.render_chat(CHAT)
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=24, decode_budget=12, session="chat-1")
    async with CloudClient(f"{router.url}/v1", api_key=KEY) as client:
        await client.connect(engine.vocab)
        assert client.route.way is Way.POST
        begun = len(router.seen)
        engine.reset()
        async with AnswerSession(request, engine=engine, cloud=client, rate=math.inf, patience=WAIT) as session:
            ids = [token.token_id async for token in session]
    outcome = session.outcome
    assert outcome.timeline.count(Source.CLOUD) >= 1
    assert outcome.cloud_error is None
    assert {(one.method, one.path) for one in router.seen[begun:]} == {("POST", "/v1/completions")}
    assert {session for *_, session in forwarded(router)[-1:]} == {"chat-1"}
    engine.reset()
    async with AnswerSession(request, engine=engine, rate=math.inf) as alone:
        expected = [token.token_id async for token in alone]
    await assert_same(engine, prompt, expected, ids)


async def test_the_refined_prompt_needs_no_request_of_its_own(router, engine):
    prompt = engine.vocab.render_chat(CHAT)
    opt_in = OptIn(new_id(), 8, refine_ratio=0.25, inline=True)
    updates = []
    async with CloudClient(f"{router.url}/v1", api_key=KEY) as client:
        info = await client.connect(engine.vocab)
        request = AnswerRequest(prompt_token_ids=prompt, max_tokens=16, decode_budget=8)
        async with aclosing(client.stream(request, opt_in, on_update=updates.append)) as chunks:
            ids = [token async for chunk in chunks for token in chunk.token_ids]
        [refined] = [update["refinement"] for update in updates if update["refinement"] is not None]
        state = await client.handoff(opt_in.handoff_id)
    assert "inline" in info.features
    assert len(ids) == 8
    assert refined["kept_indices"] == state.refinement.kept_indices
    assert refined["kept_token_ids"] == [prompt[index] for index in refined["kept_indices"]]
    assert len(refined["kept_indices"]) < len(prompt) / 2
    budgets = [update["decode_budget"] for update in updates]
    assert {"tokens": 8, "set_by": "client"} in budgets
    assert updates[-1]["status"] == state.status.value == "handed_off"


async def test_a_cancel_by_post_is_confirmed(router, cloud, engine):
    prompt, opt_in, updates = engine.vocab.tokenize("Once upon a time there was"), OptIn(new_id(), inline=True), []
    request = AnswerRequest(prompt_token_ids=prompt, max_tokens=400, decode_budget=None, ignore_eos=True)
    async with CloudClient(f"{router.url}/v1", api_key=KEY) as client:
        await client.connect(engine.vocab)
        received = 0
        async with aclosing(client.stream(request, opt_in, on_update=updates.append)) as chunks:
            async for chunk in chunks:
                received += len(chunk.token_ids)
                if received >= 3:
                    with anyio.fail_after(60):
                        assert await client.cancel(opt_in.handoff_id, used=3) is True
                    break
    made = sum(cloud.made_for(updates[0]["request_id"]))
    assert 3 <= made < 400
    await anyio.sleep(0.5)
    assert sum(cloud.made_for(updates[0]["request_id"])) == made, "it makes no further token"


async def test_a_wrong_key_is_told_as_one(router):
    async with CloudClient(f"{router.url}/v1", api_key="wrong") as client:
        with pytest.raises(CloudRefused, match="401"):
            await client.connect(retries=0)
