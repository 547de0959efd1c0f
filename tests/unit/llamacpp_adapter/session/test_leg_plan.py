from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.request import AnswerRequest, Grammar, GrammarKind
from pdd_llamacpp_adapter.session.leg_plan import plan_leg


def request(**fields):
    return AnswerRequest(**{"prompt_token_ids": [1, 2, 3], "max_tokens": 40, **fields})


def test_a_first_leg_is_the_request_itself_with_its_budget():
    plan = plan_leg(request(min_tokens=4), [], budget=9)
    assert plan.request == request(min_tokens=4, decode_budget=9)
    assert plan.repeats == 0


def test_only_a_first_leg_with_its_own_budget_says_how_little_would_do():
    planned = request(decode_budget=9, least_budget=6)
    assert plan_leg(planned, [], budget=9).request.least_budget == 6
    assert plan_leg(planned, [], budget=5).request.least_budget is None
    assert plan_leg(planned, [], budget=None).request.least_budget is None
    assert plan_leg(planned, [7], budget=9).request.least_budget is None
    repeated = request(decode_budget=9, least_budget=6, presence_penalty=1.0)
    assert plan_leg(repeated, [7], budget=9).request.least_budget is None


@pytest.mark.parametrize("named", [None, "chat-7"])
def test_all_legs_belong_to_one_conversation(named):
    first = request(session=named)
    assert plan_leg(first, [7], budget=5).request.session == plan_leg(first, [], budget=5).request.session
    assert first.session == (named or request().session)


def test_tokens_so_far_become_part_of_the_prompt():
    plan = plan_leg(request(min_tokens=8, repetition_penalty=1.2), [7, 8, 9], budget=5)
    assert plan.repeats == 0
    assert plan.request.prompt_token_ids == (1, 2, 3, 7, 8, 9)
    assert (plan.request.max_tokens, plan.request.min_tokens, plan.request.decode_budget) == (37, 5, 5)


def test_min_tokens_do_not_become_negative():
    assert plan_leg(request(min_tokens=2), [7, 8, 9], budget=5).request.min_tokens == 0


def test_later_noise_is_not_the_beginnings_but_the_same_each_time():
    seeds = [plan_leg(request(seed=5, temperature=1.0), [7] * n, budget=5).request.seed for n in (0, 1, 2, 1)]
    assert seeds[0] == 5
    assert len(set(seeds)) == 3
    assert seeds[1] == seeds[3]


@pytest.mark.parametrize(
    "fields",
    [
        {"presence_penalty": 0.5},
        {"bad_words": ["no"]},
        {"frequency_penalty": 0.5},
        {"grammar": Grammar(GrammarKind.JSON_OBJECT)},
        {"grammar": Grammar(GrammarKind.JSON_OBJECT), "temperature": 0.7, "seed": 3},
    ],
)
def test_where_the_output_has_a_beginning_the_leg_repeats_it(fields):
    plan = plan_leg(request(**fields), [7, 8, 9], budget=5)
    assert plan.repeats == 3
    assert plan.request == request(**fields, decode_budget=8)


def test_a_random_answer_cannot_be_repeated():
    assert plan_leg(request(presence_penalty=0.5, temperature=0.7), [7], budget=5) is None
    assert plan_leg(request(presence_penalty=0.5, temperature=0.7), [], budget=5) is not None


@given(st.lists(st.integers(0, 99), max_size=39), st.booleans())
def test_a_leg_always_ends_where_the_answer_has_to(ids, penalty):
    plan = plan_leg(request(frequency_penalty=0.3 * penalty), ids, budget=None)
    already_in_prompt = len(plan.request.prompt_token_ids) - 3
    assert already_in_prompt + plan.repeats == len(ids)
    assert already_in_prompt + plan.request.max_tokens == 40
    assert plan.request.decode_budget is None
