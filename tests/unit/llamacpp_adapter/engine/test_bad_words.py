from __future__ import annotations

import pytest

from pdd_core.errors import DeviceEngineFailed, InvalidRequest
from pdd_llamacpp_adapter.engine.bad_words import bad_word_ids, forbidden_next
from pdd_llamacpp_adapter.engine.sampler import Sampler
from pdd_llamacpp_adapter.request import AnswerRequest

IDS = {"no": [3], " no": [4], "not": [3, 5], " not": [6, 5], "ox": [7], " ox": [8, 7], "": [], " ": [8]}


class Words:
    """A vocabulary in which a space before a word makes another token of it, as in byte-level BPE."""

    def tokenize(self, text, *, special=False, most=None):
        return IDS[text]


def test_a_word_is_forbidden_at_the_beginning_and_behind_a_space():
    """As `vllm.SamplingParams.update_from_tokenizer`: not where the space is a token of its own."""
    assert bad_word_ids(["no"], Words()) == ((3,), (4,))
    assert bad_word_ids(["  not", "ox"], Words()) == ((3, 5), (6, 5), (7,))


def test_a_word_without_tokens_is_refused():
    with pytest.raises(InvalidRequest) as refused:
        bad_word_ids([" "], Words())
    assert refused.value.param == "bad_words"


def test_more_words_than_vllm_takes_are_refused():
    with pytest.raises(InvalidRequest, match="128 token sequences"):
        bad_word_ids(["no"] * 65, Words())


def test_only_the_last_token_of_a_word_is_forbidden():
    sequences = [(3,), (6, 5), (1, 1, 2)]
    assert forbidden_next(sequences, []) == [3]
    assert forbidden_next(sequences, [6]) == [3, 5]
    assert forbidden_next(sequences, [6, 1]) == [3]
    assert forbidden_next(sequences, [1, 1]) == [3, 2]


def chosen(logits, *, bad_words=(), output=(), steps=1, **fields):
    import numpy as np

    request = AnswerRequest(prompt_token_ids=[1], max_tokens=9, **fields)
    sampler = Sampler(request, stop_ids=[0], output=output, bad_words=bad_words)
    return [sampler.sample(np.array(logits, dtype=np.float32))[0] for _ in range(steps)]


LOGITS = [0.0, 1.0, 4.0, 3.0, 2.0]


def test_the_sampler_makes_no_bad_word_across_the_handoff():
    assert chosen(LOGITS, bad_words=[(4, 2)]) == [2]
    assert chosen(LOGITS, bad_words=[(4, 2)], output=[4]) == [3]
    assert chosen(LOGITS, bad_words=[(2, 2)], steps=3) == [2, 3, 2]


def test_only_allowed_tokens_are_chosen_whatever_their_bias():
    assert chosen(LOGITS, allowed_token_ids=[1, 4, 99]) == [4]
    assert chosen(LOGITS, allowed_token_ids=[1, 4], logit_bias={2: 100.0}, presence_penalty=2.0, steps=3) == [
        4,
        1,
        4,
    ]
    assert chosen(LOGITS, allowed_token_ids=[4], temperature=1.0, seed=1, steps=3) == [4, 4, 4]


def test_where_nothing_is_left_the_device_says_so():
    with pytest.raises(DeviceEngineFailed, match="leave no token"):
        chosen(LOGITS, allowed_token_ids=[4], bad_words=[(4,)])


def test_logprobs_are_of_the_model_s_own_choice_as_in_vllm():
    import numpy as np

    request = AnswerRequest(prompt_token_ids=[1], max_tokens=9, allowed_token_ids=[4], logprobs=1)
    token, logprobs = Sampler(request, stop_ids=[0]).sample(np.array(LOGITS, dtype=np.float32))
    assert (token, logprobs.top[0].token_id) == (4, 2)


@pytest.mark.parametrize(
    ("fields", "param"),
    [({"allowed_token_ids": []}, "allowed_token_ids"), ({"bad_words": ["a", " "]}, "bad_words")],
)
def test_what_would_mean_nothing_is_refused(fields, param):
    with pytest.raises(InvalidRequest) as refused:
        AnswerRequest(prompt_token_ids=[1], max_tokens=9, **fields)
    assert refused.value.param == param
