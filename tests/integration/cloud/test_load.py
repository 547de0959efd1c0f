"""The load-dynamic policy on the real server, which runs eight requests at once."""

from concurrent.futures import ThreadPoolExecutor

from cloud_support import PROMPTS, complete, state_of

PLACES = 8


def test_in_a_full_batch_budgets_go_down_to_the_least_and_no_others(cloud, client):
    def one(number):
        xargs = {"pdd_least_budget": 6} if number % 2 else {}
        with cloud.client() as own:
            prompt = PROMPTS[number]
            streamed = complete(
                own, budget=160, xargs=xargs, prompt=prompt, max_tokens=200, extra_body={"ignore_eos": True}
            )
            return streamed, state_of(own, streamed.handoff_id)

    with ThreadPoolExecutor(PLACES) as pool:
        answers = list(pool.map(one, range(PLACES)))
    for number, (streamed, state) in enumerate(answers):
        made = len(streamed.token_ids)
        assert (streamed.finish_reason, streamed.stop_reason) == ("length", "pdd_handoff")
        assert state["decode_budget"] == {"tokens": made, "set_by": "load" if number % 2 else "client"}
        assert (6 <= made < 160) if number % 2 else made == 160

    alone = complete(
        client, budget=48, xargs={"pdd_least_budget": 6}, max_tokens=80, extra_body={"ignore_eos": True}
    )
    assert len(alone.token_ids) == 48
    assert state_of(client, alone.handoff_id)["decode_budget"] == {"tokens": 48, "set_by": "client"}
