"""Begun in vLLM, ended in llama.cpp: the same token ids as vLLM alone gives.

The same weights on both sides (float32 against F16 made from one file), greedy, flash attention off. Where kernels
round differently two tokens can change places; that counts only if their logits lie closer than `NEAR_TIE`.
"""

import asyncio

import pytest
from cloud_support import KEY, PROMPTS, complete

from pdd_core.timeline import Source
from pdd_llamacpp_adapter import AnswerRequest, AnswerSession, CloudClient, DeviceProfile

pytestmark = pytest.mark.anyio
NEAR_TIE = 0.05
LENGTH = 32
BUDGETS = (1, 2, 5, 16)


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


def held_back(prompt_length, budget):
    """A device so slow that the cloud uses its whole budget first: the seam is where the budget says."""
    seconds = 0.4 + 0.25 * budget
    return DeviceProfile("held back", prefill_tps=prompt_length / seconds, decode_tps=1000.0)


async def margin_at(engine, prefix):
    """Difference of the two best logits after `prefix`."""
    import numpy as np

    await engine.rewind(0)
    logits = await engine.extend(prefix, want_logits=True)
    best = np.partition(logits, -2)[-2:]
    return float(abs(best[1] - best[0]))


async def test_stitched_ids_equal_the_clouds(cloud, engine, cloud_alone, record_property):
    near_ties, seams = [], []
    async with CloudClient(cloud.base_url, api_key=KEY) as client:
        await client.connect(engine.vocab)
        for budget in BUDGETS:
            for prompt, expected in cloud_alone:
                request = AnswerRequest(prompt_token_ids=prompt, max_tokens=LENGTH, decode_budget=budget)
                engine.reset()
                profile = held_back(len(prompt), budget)
                async with AnswerSession(
                    request, engine=engine, cloud=client, rate=1e6, profile=profile
                ) as answer:
                    shown = [token async for token in answer]
                ids = [token.token_id for token in shown]
                from_cloud = sum(token.source is Source.CLOUD for token in shown)
                seams.append(from_cloud == min(budget, len(expected)))
                assert ids[:from_cloud] == expected[:from_cloud]
                assert answer.outcome.cloud_error is None
                if ids != expected:
                    first = next((i for i, (a, b) in enumerate(zip(ids, expected, strict=False)) if a != b), None)
                    assert first is not None, "one answer is a prefix of the other"
                    margin = await margin_at(engine, [*prompt, *expected[:first]])
                    near_ties.append((budget, first, margin))
                    assert margin < NEAR_TIE, f"differs at token {first}, where the margin is {margin:.3f} nats"
    print(f"near ties: {len(near_ties)} of {len(BUDGETS) * len(PROMPTS)} answers differ {near_ties}")
    record_property("near_ties", len(near_ties))
    assert sum(seams) >= 0.9 * len(seams), "the budget, not an early catch-up, should have set the seam"


async def test_temperature_goes_on_with_the_same_seed_and_position(cloud, engine):
    """Sampling after the seam depends on (seed, position) only: the same handoff gives the same answer again."""
    prompt = engine.vocab.tokenize("Once upon a time there was a little girl who")
    answers = []
    async with CloudClient(cloud.base_url, api_key=KEY) as client:
        for _ in range(2):
            engine.reset()
            request = AnswerRequest(
                prompt_token_ids=prompt, max_tokens=24, temperature=0.8, top_p=0.95, seed=11, decode_budget=4
            )
            async with AnswerSession(
                request, engine=engine, cloud=client, rate=1e6, profile=held_back(len(prompt), 4)
            ) as answer:
                answers.append([token.token_id async for token in answer])
            assert answer.outcome.timeline.count(Source.DEVICE) > 0
    assert answers[0] == answers[1]


async def test_a_session_shows_the_first_token_on_arrival_and_cancels_the_cloud(cloud, engine):
    prompt = engine.vocab.tokenize("When in the Course of human events, it becomes necessary for one people to")
    engine.reset()
    async with CloudClient(cloud.base_url, api_key=KEY) as client:
        request = AnswerRequest(prompt_token_ids=prompt, max_tokens=60, decode_budget=1000)
        profile = DeviceProfile("slow", prefill_tps=30.0, decode_tps=30.0)
        async with AnswerSession(request, engine=engine, cloud=client, rate=8.0, profile=profile) as answer:
            shown = [token async for token in answer]
            outcome = answer.outcome
        assert shown[0].source is Source.CLOUD
        assert shown[0].shown_at - shown[0].received_at < 0.05
        assert outcome.took_over_at is not None
        assert outcome.timeline.count(Source.DEVICE) > 0
        request_id = outcome.handoff_id
    made = [sum(count for _, count in step["made"].items()) for step in cloud.steps()[-1:]]
    await asyncio.sleep(1.0)
    assert [sum(step["made"].values()) for step in cloud.steps()[-1:]] == made, (
        "the cloud went on after the handoff"
    )
    assert request_id
