from __future__ import annotations

import numpy as np
import pytest
from example_count import examples
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.engine.logprobs import log_probabilities
from pdd_llamacpp_adapter.engine.sampler import Sampler, _top_k_top_p
from pdd_llamacpp_adapter.request import LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY, AnswerRequest

N = 24
PROMPT = (1, 2, 2, 3)


def request(**fields):
    return AnswerRequest(prompt_token_ids=PROMPT, max_tokens=64, **fields)


class FakeMatcher:
    """A grammar in which tokens follow one another as in a table; it ends with token 0 or 1."""

    eos_ids = frozenset({0, 1})

    def __init__(self, follow, last):
        self.follow, self.last, self.taken = follow, last, []

    def mask(self, size):
        allowed = np.zeros(size, dtype=bool)
        allowed[list(self.follow.get(self.last, self.eos_ids))] = True
        return allowed

    def advance(self, ids):
        self.taken += ids
        self.last = ids[-1]


class ListMatcher:
    """A grammar that allows one set of tokens after another."""

    eos_ids = frozenset()

    def __init__(self, allowed):
        self.allowed = list(allowed)

    def mask(self, size):
        return np.isin(np.arange(size), list(self.allowed[0]))

    def advance(self, ids):
        del self.allowed[: len(ids)]


def choose(sampler, logits):
    return sampler.sample(logits.copy())[0]


def some_logits(seed=0):
    return np.random.default_rng(seed).normal(0, 3, N).astype(np.float32)


def draws(count=4000, *, logits=None, output=(), **fields):
    """Share of each token over many seeds."""
    logits = some_logits() if logits is None else logits
    counts = np.zeros(N)
    for seed in range(count):
        sampler = Sampler(request(temperature=1.0, seed=seed, **fields), stop_ids=(), output=output)
        counts[choose(sampler, logits)] += 1
    return counts / count


def softmax(logits):
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


def test_temperature_zero_takes_the_most_likely_token():
    logits = some_logits()
    assert Sampler(request(), stop_ids=()).sample(logits.copy()) == (logits.argmax(), None)


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
    token, _ = Sampler(request(**fields), stop_ids=(), output=output).sample(given_logits)
    np.testing.assert_allclose(given_logits, expected, rtol=1e-5)
    assert token == expected.argmax()


def test_penalties_go_on_with_the_tokens_it_has_chosen_itself():
    logits = np.zeros(N, dtype=np.float32)
    logits[4], logits[6] = 2.0, 1.5
    sampler = Sampler(request(frequency_penalty=1.0), stop_ids=())
    assert [choose(sampler, logits) for _ in range(4)] == [4, 6, 4, 6]


def test_clouds_tokens_count_as_output():
    logits = np.zeros(N, dtype=np.float32)
    logits[4], logits[6] = 2.0, 1.5
    assert choose(Sampler(request(presence_penalty=1.0), stop_ids=(), output=[4]), logits) == 6


def test_no_stop_token_before_min_tokens():
    logits = np.zeros(N, dtype=np.float32)
    logits[0], logits[8], logits[9] = 5.0, 4.0, 3.0
    sampler = Sampler(request(min_tokens=3), stop_ids=(0, 8), output=[1])
    assert [choose(sampler, logits) for _ in range(3)] == [9, 9, 0]


@examples(40)
@given(
    st.lists(st.integers(0, N - 1), min_size=1, max_size=20),
    st.sampled_from([0.0, 0.7]),
    st.integers(0, 2**32),
    st.integers(0, 20),
)
def test_wherever_the_answer_is_cut_the_rest_is_the_same(biased, temperature, seed, min_tokens):
    """The tokens of one engine alone, and those of a second one that goes on after any of them."""
    fields = {
        "temperature": temperature,
        "seed": seed,
        "min_tokens": min_tokens,
        "repetition_penalty": 1.2,
        "frequency_penalty": 0.7,
        "presence_penalty": -0.3,
        "logit_bias": dict.fromkeys(biased, 0.5),
    }
    rows = [some_logits(row) for row in range(8)]
    alone = Sampler(request(**fields), stop_ids=(7,))
    seen, ids = [], []
    for row in rows:
        seen.append(row.copy())
        ids.append(alone.sample(seen[-1])[0])
    for cut in range(len(rows)):
        second = Sampler(request(**fields), stop_ids=(7,), output=ids[:cut])
        for index in range(cut, len(rows)):
            logits = rows[index].copy()
            assert second.sample(logits)[0] == ids[index]
            np.testing.assert_array_equal(logits, seen[index])


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_p": 0.5}])
def test_where_every_token_ends_the_answer_min_tokens_cannot_hold_it(fields):
    logits = np.zeros(N, dtype=np.float32)
    logits[4] = 50.0
    assert choose(Sampler(request(min_tokens=2, **fields), stop_ids=range(N)), logits) == 4


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.0, "seed": 1, "min_p": 0.1}])
@pytest.mark.parametrize("penalty", [LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY])
def test_no_penalty_brings_a_forbidden_token_back(fields, penalty):
    logits = np.full(N, -3.0, dtype=np.float32)
    logits[2] = 5.0
    sampler = Sampler(request(min_tokens=3, repetition_penalty=penalty, **fields), stop_ids=(2,))
    assert 2 not in [choose(sampler, logits) for _ in range(3)]


MOST = float(np.finfo(np.float32).max)
LOGITS = st.lists(
    st.floats(-20, 20, width=32)
    | st.sampled_from([0.0, 1.0, -1.0, 1e30, -1e30, MOST, -MOST, -np.inf])
    | st.floats(width=32, allow_nan=False, allow_infinity=False),
    min_size=8,
    max_size=8,
).filter(lambda values: max(values) > -np.inf)
TOKENS = st.integers(0, 9)  # 8 and 9 are beyond the vocabulary
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "temperature": st.sampled_from([0.0, 1e-5, 1.0, 2.0, 1e300]) | st.floats(0, 2),
        "top_p": st.sampled_from([5e-324, 0.5, 1.0]) | st.floats(0, 1, exclude_min=True),
        "top_k": st.integers(-1, 9),
        "min_p": st.sampled_from([0.0, 5e-324, 1.0]) | st.floats(0, 1),
        "presence_penalty": st.floats(-2, 2),
        "frequency_penalty": st.floats(-2, 2),
        "repetition_penalty": st.floats(LEAST_REPETITION_PENALTY, MOST_REPETITION_PENALTY) | st.floats(0.5, 2),
        "logit_bias": st.dictionaries(TOKENS, st.floats(-100, 100), max_size=4),
        "min_tokens": st.integers(0, 4),
        "logprobs": st.none() | st.integers(0, 9),
        "seed": st.integers(-(2**63), 2**63 - 1),
    },
)


@examples(300)
@given(st.lists(LOGITS, min_size=1, max_size=4), FIELDS, st.sets(TOKENS), st.lists(TOKENS, max_size=3), st.data())
def test_whatever_is_asked_for_a_token_comes_and_none_that_ends_too_early(rows, fields, stop_ids, output, data):
    """Also of a grammar: what it allows is drawn for each row."""
    allowed = data.draw(st.none() | st.lists(st.sets(st.integers(0, 7), min_size=1), min_size=4, max_size=4))
    matcher = None if allowed is None else ListMatcher(allowed)
    sampler = Sampler(request(**fields), stop_ids=stop_ids, output=output, matcher=matcher)
    for position, row in enumerate(rows, start=len(output)):
        logits = np.array(row, dtype=np.float32)
        candidates = {token for token in range(8) if logits[token] > -np.inf}
        if allowed is not None:
            candidates &= allowed[position - len(output)]
        if not candidates:
            return
        token, _ = sampler.sample(logits)
        assert token in candidates
        if position < fields.get("min_tokens", 0) and candidates - stop_ids:
            assert token not in stop_ids


def test_logit_bias_comes_before_penalties_as_in_vllm():
    logits = np.zeros(N, dtype=np.float32)
    Sampler(request(logit_bias={1: 3.0, N + 5: 9.0}, repetition_penalty=2.0), stop_ids=()).sample(logits)
    assert logits[1] == 1.5  # the other way round: 3.0


def test_logprobs_are_those_before_bias_penalties_and_temperature():
    fields = {"temperature": 0.3, "logit_bias": {3: 50.0}, "repetition_penalty": 1.4, "seed": 1}
    logits = some_logits()
    token, found = Sampler(request(logprobs=2, **fields), stop_ids=()).sample(logits.copy())
    assert token == 3
    assert found == log_probabilities(logits, 3, 2)


def test_without_logprobs_none_are_made():
    assert Sampler(request(), stop_ids=()).sample(some_logits())[1] is None


@pytest.mark.parametrize("fields", [{}, {"temperature": 1.5, "seed": 4, "min_p": 0.1, "top_k": 7, "top_p": 0.9}])
def test_only_what_the_grammar_allows_is_chosen_and_the_grammar_goes_on(fields):
    matcher = FakeMatcher({2: [5, 6], 5: [6], 6: [9]}, last=2)
    sampler = Sampler(request(logit_bias={8: 100.0}, **fields), stop_ids=(0,), output=[2], matcher=matcher)
    made = [choose(sampler, some_logits(row)) for row in range(4)]
    assert made in ([5, 6, 9, 0], [6, 9, 0, 0])
    assert matcher.taken == made


def test_logprobs_see_the_grammar_as_in_vllm():
    matcher = FakeMatcher({2: [5]}, last=2)
    _, found = Sampler(request(logprobs=1), stop_ids=(), matcher=matcher).sample(some_logits())
    assert (found.chosen.token_id, found.chosen.logprob) == (5, 0.0)


def test_a_complete_grammar_ends_the_answer_even_before_min_tokens():
    sampler = Sampler(request(min_tokens=9), stop_ids=(0, 7), matcher=FakeMatcher({}, last=2))
    assert choose(sampler, some_logits()) == 0


def test_an_end_of_sequence_that_would_not_end_this_answer_is_not_chosen():
    logits = np.zeros(N, dtype=np.float32)
    logits[0] = 9.0
    assert choose(Sampler(request(), stop_ids=(1, 7), matcher=FakeMatcher({}, last=2)), logits) == 1
    assert choose(Sampler(request(ignore_eos=True), stop_ids=(), matcher=FakeMatcher({}, last=2)), logits) == 0


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
        return [choose(sampler, row) for row in logits]

    assert answer() == answer()


def test_noise_depends_on_the_position_in_the_answer_only():
    flat = np.zeros(N, dtype=np.float32)
    early = Sampler(request(temperature=1.0, seed=3), stop_ids=(), output=[1])
    late = Sampler(request(temperature=1.0, seed=3), stop_ids=(), output=[1, 2, 3])
    tokens = [choose(early, flat) for _ in range(8)]
    assert tokens[2:] == [choose(late, flat) for _ in range(6)]


def test_without_a_seed_two_answers_differ():
    def answer():
        sampler = Sampler(request(temperature=1.0), stop_ids=())
        return [choose(sampler, np.zeros(N, dtype=np.float32)) for _ in range(30)]

    assert answer() != answer()


@pytest.mark.parametrize("fields", [{}, {"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}])
def test_a_masked_token_is_never_drawn(fields):
    logits = np.zeros(N, dtype=np.float32)
    sampler = Sampler(request(temperature=2.0, min_tokens=60, seed=1, **fields), stop_ids=range(1, N))
    assert {choose(sampler, logits) for _ in range(40)} == {0}


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_logits_that_are_not_numbers_are_the_engines_failure(temperature, value):
    logits = some_logits()
    logits[3 if np.isnan(value) or value > 0 else slice(None)] = value
    with pytest.raises(DeviceEngineFailed, match="not numbers"):
        choose(Sampler(request(temperature=temperature), stop_ids=()), logits)
