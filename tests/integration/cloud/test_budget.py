"""The decode budget on a real vLLM: exact, and its own end is the only one that is a handoff."""

import pytest
from cloud_support import PROMPTS, complete, state_of

EOS = 2


@pytest.fixture(scope="module")
def uncapped(cloud):
    with cloud.client() as client:
        return complete(client, budget=1000, prompt=PROMPTS[1], max_tokens=24).token_ids


@pytest.mark.parametrize("budget", range(1, 21))
def test_a_budget_yields_exactly_that_many_tokens(client, uncapped, budget):
    streamed = complete(client, budget=budget, prompt=PROMPTS[1], max_tokens=24)
    assert streamed.token_ids == uncapped[:budget]
    assert (streamed.finish_reason, streamed.stop_reason) == ("length", "pdd_handoff")
    state = state_of(client, streamed.handoff_id)
    assert state["status"] == "handed_off"
    assert state["decode_budget"] == {"tokens": budget, "set_by": "client"}
    assert state["output_token_ids"] == streamed.token_ids


def test_a_client_limit_below_the_budget_is_a_plain_length(client):
    for budget in (6, 7):
        streamed = complete(client, budget=budget, max_tokens=6, prompt=PROMPTS[1])
        assert (len(streamed.token_ids), streamed.finish_reason, streamed.stop_reason) == (6, "length", None)
        assert state_of(client, streamed.handoff_id)["status"] == "finished"


def test_an_answer_that_ends_before_the_budget_is_no_handoff(client):
    streamed = complete(client, budget=200, max_tokens=300, prompt="The capital of France is")
    assert (streamed.finish_reason, streamed.stop_reason) == ("stop", None)
    assert streamed.token_ids[-1] == EOS
    assert len(streamed.token_ids) < 200
    assert state_of(client, streamed.handoff_id)["status"] == "finished"


def test_a_stop_string_before_the_budget_is_no_handoff(client):
    streamed = complete(client, budget=60, max_tokens=100, prompt="1, 2, 3, 4, 5,", stop=[" 9"])
    assert (streamed.finish_reason, streamed.stop_reason) == ("stop", " 9")
    assert state_of(client, streamed.handoff_id)["status"] == "finished"


def test_min_tokens_above_the_budget_does_not_move_it(client):
    streamed = complete(client, budget=3, max_tokens=20, extra_body={"min_tokens": 8})
    assert (len(streamed.token_ids), streamed.stop_reason) == (3, "pdd_handoff")
    assert state_of(client, streamed.handoff_id)["sampling_params"]["min_tokens"] == 8


def test_without_a_budget_the_servers_default_holds(client):
    streamed = complete(client, max_tokens=300, prompt=PROMPTS[3], extra_body={"ignore_eos": True})
    assert (len(streamed.token_ids), streamed.stop_reason) == (64, "pdd_handoff")
    assert state_of(client, streamed.handoff_id)["decode_budget"] == {"tokens": 64, "set_by": "default"}


def test_a_prompt_over_several_prefill_steps_and_a_prefix_cache_hit_keep_the_budget_exact(client):
    long = [100 + i % 4000 for i in range(5000)]  # more than one step of 4,096 tokens
    first = complete(client, budget=3, prompt=long, max_tokens=20)
    again = complete(client, budget=5, prompt=long, max_tokens=20)
    assert (len(first.token_ids), len(again.token_ids)) == (3, 5)
    assert again.token_ids[:3] == first.token_ids


def test_chat_is_capped_too_and_an_answer_that_is_not_streamed(client):
    handoff_id = "chat" + "0" * 28
    answer = client.chat.completions.create(
        model="smollm2",
        messages=[{"role": "user", "content": "Tell me about the sea."}],
        max_tokens=40,
        temperature=0,
        extra_body={"vllm_xargs": {"pdd_handoff": handoff_id, "pdd_decode_budget": 7}, "return_token_ids": True},
    )
    choice = answer.choices[0]
    assert (len(choice.token_ids), choice.finish_reason, choice.stop_reason) == (7, "length", "pdd_handoff")
    assert getattr(answer, "kv_transfer_params", None) is None
    assert state_of(client, handoff_id)["output_token_ids"] == choice.token_ids


def test_responses_are_capped_too(client):
    handoff_id = "resp" + "0" * 28
    client.responses.create(
        model="smollm2",
        input="Tell me about the sea.",
        max_output_tokens=40,
        extra_body={"vllm_xargs": {"pdd_handoff": handoff_id, "pdd_decode_budget": 7}},
    )
    state = state_of(client, handoff_id)
    assert (len(state["output_token_ids"]), state["status"]) == (7, "handed_off")
