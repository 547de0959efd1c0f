"""Begun in vLLM, ended in llama.cpp: the same token ids as vLLM alone gives.

The same weights on both sides (float32 against F16 made from one file), greedy, flash attention off. Where kernels
round differently two tokens can change places; that counts only if their logits lie closer than `NEAR_TIE`.
"""

import asyncio
import math

import pytest
from cloud_support import KEY, PROMPTS, complete
from held_engine import Held

from pdd_core.patience import Patience
from pdd_core.timeline import Source
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, CloudClient, DeviceProfile

pytestmark = pytest.mark.anyio
NEAR_TIE = 0.05
LENGTH = 32
BUDGETS = (2, 16)
"""Every other cut is made with recorded tokens, in test_every_cut.py."""


@pytest.fixture(scope="module")
def cloud_alone(cloud):
    """The prompt's ids and the whole answer, per prompt, by the cloud alone."""
    with cloud.client() as client:
        answers = []
        for prompt in PROMPTS:
            ids = client.completions.create(
                model="smollm2", prompt=prompt, max_tokens=1, extra_body={"return_token_ids": True}
            ).choices[0]
            whole = complete(client, budget=1000, prompt=prompt, max_tokens=LENGTH)
            answers.append((ids.prompt_token_ids, whole.token_ids))
    return answers


async def handed_over(engine, client, request):
    """The tokens of one handoff for which the cloud decoded its whole budget, and the session's outcome."""
    engine.reset()
    held, shown = Held(engine), []
    waits = Patience(late_s=math.inf)  # the seam is where the budget ends, however late the device
    async with AnswerSession(request, engine=held, cloud=client, rate=math.inf, patience=waits) as answer:
        async for token in answer:
            shown.append(token)
            if len(shown) == request.decode_budget:
                held.begin.set()
    return shown, answer.outcome


async def margin_at(engine, prefix):
    """Difference of the two best logits after `prefix`."""
    import numpy as np

    await engine.slots[0].memory.rewind(0)
    logits = await engine.slots[0].extend(prefix, want_logits=True)
    best = np.partition(logits, -2)[-2:]
    return float(abs(best[1] - best[0]))


@pytest.mark.timeout(900)
async def test_stitched_ids_equal_the_clouds(cloud, engine, cloud_alone, record_property):
    near_ties = []
    async with CloudClient(cloud.base_url, api_key=KEY) as client:
        await client.connect(engine.vocab)
        for budget in BUDGETS:
            for prompt, expected in cloud_alone:
                request = AnswerRequest(prompt_token_ids=prompt, max_tokens=LENGTH, decode_budget=budget)
                shown, outcome = await handed_over(engine, client, request)
                ids = [token.token_id for token in shown]
                from_cloud = sum(token.source is Source.CLOUD for token in shown)
                assert from_cloud == min(budget, len(expected))
                assert ids[:from_cloud] == expected[:from_cloud]
                assert outcome.cloud_error is None
                if ids != expected:
                    first = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), None)
                    assert first is not None, "one answer is a prefix of the other"
                    margin = await margin_at(engine, [*prompt, *expected[:first]])
                    near_ties.append((budget, first, margin))
                    assert margin < NEAR_TIE, f"differs at token {first}, where the margin is {margin:.3f} nats"
    print(f"near ties: {len(near_ties)} of {len(BUDGETS) * len(PROMPTS)} answers differ {near_ties}")
    record_property("near_ties", len(near_ties))


async def test_temperature_goes_on_with_the_same_seed_and_position(cloud, engine):
    """Sampling after the seam depends on (seed, position) only: the same handoff gives the same answer again."""
    prompt = engine.vocab.tokenize("Once upon a time there was a little girl who")
    answers = []
    async with CloudClient(cloud.base_url, api_key=KEY) as client:
        for _ in range(2):
            request = AnswerRequest(
                prompt_token_ids=prompt, max_tokens=24, temperature=0.8, top_p=0.95, seed=11, decode_budget=4
            )
            shown, _ = await handed_over(engine, client, request)
            assert [token.source for token in shown[3:5]] == [Source.CLOUD, Source.DEVICE]
            answers.append([token.token_id for token in shown])
    assert answers[0] == answers[1]


def tokens_made(cloud):
    return sum(count for step in cloud.steps() for count in step["made"].values())


async def test_a_session_takes_over_from_a_cloud_that_could_go_on_and_cancels_it(cloud, engine):
    # more than a batch that tells the device its speed: how soon it is level decides when the cloud is closed
    prompt = engine.vocab.tokenize(f"{PROMPTS[1]} which have connected them with another, and to assume")
    engine.reset()
    before = tokens_made(cloud)
    async with CloudClient(cloud.base_url, api_key=KEY) as client:
        # minutes of the cloud's work: it is not done before a device that gets hardly any of the processor's time
        request = AnswerRequest(prompt_token_ids=prompt, max_tokens=1900, decode_budget=1900, ignore_eos=True)
        profile = DeviceProfile("slow", prefill_tps=200.0, decode_tps=30.0)
        async with AnswerSession(request, engine=engine, cloud=client, rate=8.0, profile=profile) as answer:
            shown = [await anext(answer)]
            while shown[-1].source is Source.CLOUD:
                shown.append(await anext(answer))
        outcome = answer.outcome
        assert shown[0].source is Source.CLOUD
        assert outcome.took_over_at is not None
        assert outcome.cancel_confirmed is True
    made = tokens_made(cloud)
    assert 0 < made - before < 1900
    await asyncio.sleep(1.0)
    assert tokens_made(cloud) == made, "the cloud went on after the handoff"
