from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.logprobs import NextToken, log_likelihood, log_probabilities


@given(st.lists(st.floats(-60, 60, width=32), min_size=1, max_size=40), st.integers(0, 20), st.data())
def test_logprobs_are_the_log_softmax_best_first(values, top, data):
    logits = np.array(values, dtype=np.float32)
    token = data.draw(st.integers(0, logits.size - 1))
    expected = logits.astype(np.float64)
    expected -= expected.max()
    expected -= np.log(np.exp(expected).sum())
    found = log_probabilities(logits, token, top)
    assert found.chosen.token_id == token
    assert found.chosen.logprob == pytest.approx(expected[token], abs=1e-4)
    order = sorted(range(logits.size), key=lambda i: (-logits[i], i))[:top]
    assert [best.token_id for best in found.top] == order
    assert [best.logprob for best in found.top] == pytest.approx(expected[order], abs=1e-4)


def test_the_chosen_token_need_not_be_among_the_top():
    found = log_probabilities(np.array([3.0, 2.0, 1.0], dtype=np.float32), 2, 1)
    assert (found.chosen.token_id, found.top[0].token_id) == (2, 0)


def test_top_zero_gives_the_chosen_token_only():
    assert log_probabilities(np.zeros(4, dtype=np.float32), 1, 0).top == ()


def test_a_masked_token_has_no_share():
    logits = np.array([0.0, -np.inf, 0.0, -np.inf], dtype=np.float32)
    found = log_probabilities(logits, 2, 3)
    assert found.chosen.logprob == pytest.approx(np.log(0.5))
    assert [(best.token_id, best.logprob == -np.inf) for best in found.top] == [(0, False), (2, False), (1, True)]


def test_logits_are_left_as_they_are():
    logits = np.array([1.0, 2.0, 3.0], dtype=np.float32)
    log_probabilities(logits, 0, 2)
    assert logits.tolist() == [1, 2, 3]


@given(st.lists(st.floats(-60, 60, width=32), min_size=2, max_size=40), st.data())
def test_a_likelihood_is_the_logprob_of_what_came(values, data):
    logits = np.array(values, dtype=np.float32)
    token = data.draw(st.integers(0, logits.size - 1))
    allowed = np.array(data.draw(st.lists(st.booleans(), min_size=logits.size, max_size=logits.size)))
    allowed[token] = True
    plain = log_likelihood(logits, NextToken(token))
    assert plain == pytest.approx(log_probabilities(logits, token, 0).chosen.logprob)
    masked = np.where(allowed, logits, -np.inf)
    among = log_likelihood(logits, NextToken(token, allowed))
    assert among == pytest.approx(log_probabilities(masked, token, 0).chosen.logprob)
    assert among >= plain - 1e-6
