from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.request import AnswerRequest
from pdd_llamacpp_adapter.sampler import Sampler, _top_k_top_p

N = 24
PROMPT = (1, 2, 2, 3)


def request(**fields):
    return AnswerRequest(prompt_token_ids=PROMPT, max_tokens=64, **fields)


def some_logits(seed=0):
    return np.random.default_rng(seed).normal(0, 3, N).astype(np.float32)


def draws(count=4000, *, logits=None, output=(), **fields):
    """Share of each token over many seeds."""
    logits = some_logits() if logits is None else logits
    counts = np.zeros(N)
    for seed in range(count):
        sampler = Sampler(request(temperature=1.0, seed=seed, **fields), stop_ids=(), output=output)
        counts[sampler.sample(logits.copy())] += 1
    return counts / count


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_temperature_zero_takes_the_most_likely_token():
    logits = some_logits()
    assert Sampler(request(), stop_ids=()).sample(logits.copy()) == logits.argmax()


def test_penalties_follow_vllms_definition():
    fields = {"repetition_penalty": 1.3, "frequency_penalty": 0.4, "presence_penalty": 0.25}
    output = [5, 5, 5, 2, 9]
    logits = some_logits()
    expected = logits.astype(np.float64)
    for token in range(N):
        if token in PROMPT or token in output:
            expected[token] = expected[token] / 1.3 if expected[token] > 0 else expected[token] * 1.3
        expected[token] -= 0.4 * output.count(token) + 0.25 * (token in output)
    given_logits = logits.copy()
    token = Sampler(request(**fields), stop_ids=(), output=output).sample(given_logits)
    np.testing.assert_allclose(given_logits, expected, rtol=1e-5)
    assert token == expected.argmax()


def test_penalties_go_on_with_the_tokens_it_has_chosen_itself():
    logits = np.zeros(N, dtype=np.float32)
    logits[4], logits[6] = 2.0, 1.5
    sampler = Sampler(request(frequency_penalty=1.0), stop_ids=())
    assert [sampler.sample(logits.copy()) for _ in range(4)] == [4, 6, 4, 6]


def test_clouds_tokens_count_as_output():
    logits = np.zeros(N, dtype=np.float32)
    logits[4], logits[6] = 2.0, 1.5
    assert Sampler(request(presence_penalty=1.0), stop_ids=(), output=[4]).sample(logits) == 6


def test_no_stop_token_before_min_tokens():
    logits = np.zeros(N, dtype=np.float32)
    logits[0], logits[8], logits[9] = 5.0, 4.0, 3.0
    sampler = Sampler(request(min_tokens=3), stop_ids=(0, 8), output=[1])
    assert [sampler.sample(logits.copy()) for _ in range(3)] == [9, 9, 0]


def test_draws_follow_the_distribution():
    np.testing.assert_allclose(draws(), softmax(some_logits()), atol=0.03)


def test_top_p_keeps_the_smallest_set_that_reaches_it():
    logits = np.log(np.array([0.5, 0.3, 0.15, 0.05] + [1e-9] * (N - 4), dtype=np.float32))
    share = draws(2000, logits=logits, top_p=0.7)
    np.testing.assert_allclose(share[:4], [0.625, 0.375, 0, 0], atol=0.04)


def test_top_p_keeps_at_least_one():
    share = draws(50, top_p=1e-6)
    assert share[some_logits().argmax()] == 1.0


def test_top_k_keeps_the_k_most_likely():
    share = draws(1000, top_k=3)
    assert set(np.flatnonzero(share)) == set(np.argsort(some_logits())[-3:])


def test_min_p_is_relative_to_the_most_likely():
    logits = np.log(np.array([0.6, 0.2, 0.1, 0.05, 0.05] + [1e-9] * (N - 5), dtype=np.float32))
    assert set(np.flatnonzero(draws(1000, logits=logits, min_p=0.3))) == {0, 1}


@given(
    st.lists(st.integers(-40, 40), min_size=2, max_size=30),
    st.integers(-1, 32),
    st.floats(0.01, 1.0, exclude_max=True),
)
def test_top_k_and_top_p_agree_with_vllms_definition(values, top_k, top_p):
    logits = np.array(values, dtype=np.float32) / 8 + np.arange(len(values), dtype=np.float32) * 1e-3
    order = np.argsort(logits, kind="stable")
    masked = logits[order].astype(np.float64)
    if 0 < top_k < len(values):
        masked[masked < masked[-top_k]] = -np.inf
    below = np.cumsum(softmax(masked))
    stays = below > 1 - top_p
    stays[-1] = True
    expected = {int(i) for i in order[stays & np.isfinite(masked)]}
    kept = {int(i) for i in _top_k_top_p(logits, np.arange(len(values)), top_k, top_p)}
    border = {int(i) for i in order[np.abs(below - (1 - top_p)) < 1e-9]}
    assert kept - border == expected - border


def test_same_seed_and_handoff_position_give_the_same_answer():
    logits = [some_logits(i) for i in range(12)]

    def answer():
        sampler = Sampler(request(temperature=1.0, seed=3), stop_ids=(), output=[1, 2])
        return [sampler.sample(row.copy()) for row in logits]

    assert answer() == answer()


def test_noise_depends_on_the_position_in_the_answer_only():
    flat = np.zeros(N, dtype=np.float32)
    early = Sampler(request(temperature=1.0, seed=3), stop_ids=(), output=[1])
    late = Sampler(request(temperature=1.0, seed=3), stop_ids=(), output=[1, 2, 3])
    tokens = [early.sample(flat.copy()) for _ in range(8)]
    assert tokens[2:] == [late.sample(flat.copy()) for _ in range(6)]


def test_without_a_seed_two_answers_differ():
    def answer():
        sampler = Sampler(request(temperature=1.0), stop_ids=())
        return [sampler.sample(np.zeros(N, dtype=np.float32)) for _ in range(30)]

    assert answer() != answer()


@pytest.mark.parametrize("fields", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_masked_token_is_never_drawn(fields):
    logits = np.zeros(N, dtype=np.float32)
    sampler = Sampler(request(temperature=2.0, min_tokens=60, seed=1, **fields), stop_ids=range(1, N))
    assert {sampler.sample(logits.copy()) for _ in range(40)} == {0}
