"""What an evaluation reads of llama.cpp is the same bits, whatever was read before."""

from __future__ import annotations

import numpy as np
import pytest

from pdd_lab.evaluate.eval_model import EvalModel


@pytest.fixture(scope="module")
def reader(gguf):
    reader = EvalModel(gguf, n_ctx=1024, threads=1)
    yield reader
    reader.close()


@pytest.fixture(scope="module")
def ids(loaded):
    return loaded.vocab.tokenize("The quick brown fox jumps over 13 lazy dogs. " * 10 + "Nobody saw it. " * 30)[
        :170
    ]


@pytest.fixture(scope="module")
def answer(reader, ids):
    reader.read(ids, window=16, layers=[14])
    return reader.answer(6, opening=[], after=16)


def test_an_answers_likelihoods_are_those_of_its_tokens_by_the_prompt(reader, ids, answer):
    tokens, likelihoods = answer
    rows = reader.forced(ids, tokens)
    assert rows.shape == (len(tokens), reader.vocab.size)
    np.testing.assert_allclose(np.exp(rows).sum(axis=-1), 1, rtol=1e-4)
    # one by one and in a batch: other kernels
    np.testing.assert_allclose(rows[np.arange(len(tokens)), tokens], likelihoods, atol=0.1)
    assert rows.argmax(axis=-1).tolist() == tokens


@pytest.mark.parametrize("count", [1, 2, 6])
def test_what_was_read_before_does_not_matter(reader, ids, answer, count):
    tokens = answer[0][:count]
    others = [ids, ids[:100] + ids[120:], ids[:1] + ids[90:], ids[:169], ids[:30]]
    fresh = []
    for other in others:
        reader.read([5, 6, 7], window=2, layers=[3])
        fresh.append(reader.forced(other, tokens))
    for order in (range(5), (4, 3, 2, 1, 0), (0, 0, 3, 3)):
        for number in order:
            assert np.array_equal(reader.forced(others[number], tokens), fresh[number])


def test_tokens_that_were_decoded_one_by_one_are_read_again(reader, ids, answer):
    fresh = reader.forced([*ids, *answer[0]], answer[0])
    reader.read(ids, window=16, layers=[14])
    reader.answer(6, opening=[], after=16)
    assert np.array_equal(reader.forced([*ids, *answer[0]], answer[0]), fresh)
