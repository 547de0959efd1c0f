from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.refinement.guard import Guard
from pdd_llamacpp_adapter.session.answer import Answer
from pdd_llamacpp_adapter.session.judging import GuardVerdict, Judging

PROMPT = list(range(20))
KEPT = [0, 1, 5, 6, 19]
GUARD = Guard(1.0, 3, 8)


def likelihood(token):
    """What the device makes of a token."""
    return -0.01 * token


@pytest.fixture
def answer():
    made = Answer(PROMPT, max_tokens=60, cloud=True, device=True)
    made.reading.refine(KEPT)
    return made


def sent(answer, tokens, likelihoods=None):
    answer.cloud_sent(tokens, likelihoods=[-0.5] * len(tokens) if likelihoods is None else likelihoods)


def process(judging, answer, count):
    """One batch, as the device's part makes it: with the logits behind it if it is all there is."""
    judging.catch_up()
    ids = answer.pending(count)
    following = judging.following(len(ids))
    behind = None
    if len(ids) == answer.behind:
        behind = np.log(np.full(100, 0.01, dtype=np.float32))
    judging.processed(following, [likelihood(seen.token) for seen in following.values()], behind=behind)
    answer.device_processed(len(ids))
    return following


def test_each_token_is_judged_by_what_stands_before_it(answer):
    judging = Judging(GUARD, answer)
    sent(answer, [50, 51, 52])
    assert process(judging, answer, 4) == {}, "inside the prompt"
    following = process(judging, answer, 3)
    assert {index: seen.token for index, seen in following.items()} == {0: 50, 1: 51, 2: 52}
    assert judging.judged == 3
    assert judging.excess == pytest.approx(np.mean([-0.5 - likelihood(token) for token in (50, 51, 52)]))


def test_a_token_that_comes_later_is_judged_by_the_logits_at_hand(answer):
    judging = Judging(GUARD, answer)
    process(judging, answer, 99)
    judging.catch_up()
    assert judging.judged == 0
    sent(answer, [50])
    judging.catch_up()
    judging.catch_up()
    assert judging.judged == 1
    assert judging.excess == pytest.approx(-0.5 - np.log(0.01), abs=1e-5)


@given(
    st.lists(
        st.one_of(st.tuples(st.just("sent"), st.integers(1, 4)), st.tuples(st.just("read"), st.integers(1, 9)))
    ),
    st.integers(1, 8),
)
def test_no_token_is_judged_twice_or_left_out(history, tokens):
    answer = Answer(PROMPT, max_tokens=500, cloud=True, device=True)
    answer.reading.refine(KEPT)
    judging = Judging(Guard(1.0, 1, tokens), answer)
    told = []
    for step, count in history:
        if step == "sent":
            fresh = [50 + len(told) + index for index in range(count)]
            told += [-0.001 * token for token in fresh]
            sent(answer, fresh, told[-count:])
        elif answer.behind:
            process(judging, answer, count)
    while answer.behind:
        process(judging, answer, 5)
    assert judging.judged == min(len(told), tokens)
    assert judging._cloud == told[:tokens]


def test_a_grammar_says_what_else_could_have_come(answer):
    judging, allowed = Judging(GUARD, answer), np.ones(100, dtype=bool)
    sent(answer, [50, 51])
    judging.allow(1, allowed)
    following = judging.following(99 if answer.behind > 99 else answer.behind)
    assert [seen.allowed is allowed for seen in following.values()] == [False, True]


def test_too_few_tokens_are_waited_for_and_then_done_without(answer):
    judging = Judging(GUARD, answer)
    assert judging.lacks()
    sent(answer, [50, 51])
    process(judging, answer, 99)
    assert judging.lacks()
    assert not judging.lacks(coming=1)
    assert not judging.lost()
    judging.agreed()
    assert judging.verdict is GuardVerdict.TOO_FEW
    assert not judging.lacks()


@pytest.mark.parametrize(("cloud", "verdict"), [(-0.5, GuardVerdict.AGREED), (5.0, GuardVerdict.DISAGREED)])
def test_the_verdict_is_final(answer, cloud, verdict):
    judging = Judging(GUARD, answer)
    sent(answer, [50, 51, 52], [cloud] * 3)
    process(judging, answer, 99)
    assert judging.lost() == (verdict is GuardVerdict.DISAGREED)
    judging.agreed()
    assert judging.verdict is verdict
    sent(answer, [99] * 5)
    process(judging, answer, 99)
    assert judging.judged == 3
    assert str(judging).endswith("nats per token at worst, of 3 tokens")


def test_a_full_prompt_is_not_judged():
    answer = Answer(PROMPT, max_tokens=60, cloud=True, device=True)
    judging = Judging(GUARD, answer)
    sent(answer, [50, 51, 52])
    assert process(judging, answer, 99) == {}
    assert not judging.lacks()
    assert not judging.lost()
    judging.agreed()
    assert judging.verdict is None
    assert str(judging) == "no token to judge by"


def test_a_cloud_that_gives_no_likelihoods_is_not_waited_for(answer):
    judging = Judging(GUARD, answer)
    sent(answer, [50], [])
    process(judging, answer, 99)
    assert not judging.lacks()
    judging.agreed()
    assert judging.verdict is GuardVerdict.TOO_FEW
