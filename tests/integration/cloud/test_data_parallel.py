"""Two engines: what counts, and who is asked, is the engine that has the request."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor

import openai
import pytest
from cloud_support import KEY, PROMPTS, complete, new_id, state_of, wait_until

# Each engine takes a core for itself, and spins: on two cores the API servers starve, and a test takes minutes.
pytestmark = pytest.mark.exhaustive
RANKS = (0, 1)
LONG = [100 + index % 900 for index in range(2000)]


@pytest.fixture(scope="module")
def both(engines):
    with openai.OpenAI(base_url=engines.base_url, api_key=KEY, max_retries=0, timeout=300) as client:
        client.metrics_url = engines.base_url.removesuffix("/v1") + "/metrics"
        yield client


def on(rank):
    """vLLM's own header, by which a client chooses an engine."""
    return {"extra_headers": {"X-data-parallel-rank": str(rank)}}


def by_engine(client, metric):
    text = client.get(client.metrics_url, cast_to=str)
    found = re.findall(rf'^{metric}{{[^}}]*engine="(\d)"[^}}]*}} (\S+)$', text, re.MULTILINE)
    return {int(engine): float(value) for engine, value in found}


def made(client):
    return by_engine(client, "vllm:generation_tokens_total")


def test_budgets_are_exact_on_both_engines(both):
    budgets = (1, 2, 7, 20)
    before = made(both)
    asked = [(rank, budget) for rank in RANKS for budget in budgets]
    with ThreadPoolExecutor(len(asked)) as pool:
        answers = list(pool.map(lambda one: complete(both, budget=one[1], **on(one[0])), asked))
    assert [len(one.token_ids) for one in answers] == [budget for _, budget in asked]
    assert {(one.finish_reason, one.stop_reason) for one in answers} == {("length", "pdd_handoff")}
    expected = {rank: before.get(rank, 0) + sum(budgets) for rank in RANKS}
    wait_until(lambda: made(both) == expected)  # no engine has made a token more


def test_each_engines_prompts_are_refined_by_what_it_has_captured(both):
    # of other lengths: scores of another request's prompt would be found out
    prompts = [[100 + (seed * 131 + index * 7) % 900 for index in range(150 + 30 * seed)] for seed in range(4)]
    asked = [(rank, prompt, new_id()) for prompt in prompts for rank in RANKS]

    def ask(one):
        rank, prompt, handoff_id = one
        complete(both, budget=4, prompt=prompt, handoff_id=handoff_id, xargs={"pdd_refine_ratio": 0.5}, **on(rank))
        return state_of(both, handoff_id)["refinement"]

    with ThreadPoolExecutor(len(asked)) as pool:
        refinements = list(pool.map(ask, asked))
    assert [one["kind"] for one in refinements] == ["refined"] * len(asked), refinements
    kept = [set(one["kept_indices"]) for one in refinements]
    for first, second in zip(kept[::2], kept[1::2], strict=True):  # of the same prompt
        assert len(first & second) >= 0.95 * len(first)
    assert all(len(one) < len(prompt) for one, (_, prompt, _) in zip(kept, asked, strict=True))


@pytest.mark.parametrize("rank", RANKS)
def test_a_confirmed_delete_is_the_engines_last_token(both, rank):
    said = []

    def delete(streamed):
        if len(streamed.token_ids) >= 3 and not said:
            said.append(both.delete(f"/pdd/handoffs/{streamed.handoff_id}", cast_to=object)["confirmed"])

    more = {"budget": 600, "max_tokens": 600, "extra_body": {"ignore_eos": True}, **on(rank)}
    streamed = complete(both, on_chunk=delete, **more)
    assert said == [True]
    assert streamed.finish_reason == "abort"
    before = made(both)
    assert len(complete(both, budget=8, **on(rank)).token_ids) == 8
    # were it not stopped, it would have got a token in each of these eight steps
    wait_until(lambda: made(both)[rank] >= before[rank] + 8)
    assert made(both)[rank] == before[rank] + 8


def test_a_delete_does_not_wait_for_the_other_engine(both):
    events, handoff_id = [], new_id()

    def prefill():
        complete(both, budget=1, prompt=LONG, handoff_id=handoff_id, **on(1))
        events.append("the other engine's first token")

    other = threading.Thread(target=prefill)

    def delete(streamed):
        if len(streamed.token_ids) == 3 and not events:
            other.start()
            wait_until(lambda: known(both, handoff_id))
            both.delete(f"/pdd/handoffs/{streamed.handoff_id}", cast_to=object)
            events.append("deleted")

    complete(both, budget=600, max_tokens=600, on_chunk=delete, extra_body={"ignore_eos": True}, **on(0))
    other.join()
    assert events == ["deleted", "the other engine's first token"]


def known(client, handoff_id):
    try:
        return state_of(client, handoff_id)
    except openai.NotFoundError:
        return None


def test_a_delete_before_the_first_token_is_confirmed_though_the_engine_is_not_known_yet(both):
    handoff_id = new_id()
    waiting = threading.Thread(
        target=complete, args=(both,), kwargs={"prompt": LONG[:300], "handoff_id": handoff_id}
    )
    waiting.start()
    wait_until(lambda: known(both, handoff_id))
    assert both.delete(f"/pdd/handoffs/{handoff_id}", cast_to=object)["confirmed"]
    waiting.join()


def test_the_pressure_is_told_of_each_engine(both):
    complete(both, budget=2, prompt=PROMPTS[1])
    assert set(by_engine(both, "pdd_pressure")) == set(RANKS)
    assert by_engine(both, "pdd_budget_floor_tokens") == dict.fromkeys(RANKS, 64.0)
