from __future__ import annotations

import numpy as np
import pytest

from pdd_core.errors import GrammarRejected
from pdd_llamacpp_adapter.session.answer import Answer
from pdd_llamacpp_adapter.session.grammar_following import GrammarFollower


class Counting:
    """A grammar in which each token is the one before it plus one."""

    def __init__(self):
        self.next = 0

    def mask(self, size):
        allowed = np.zeros(size, dtype=bool)
        allowed[self.next] = True
        return allowed

    def advance(self, ids):
        for index, token in enumerate(ids):
            if token != self.next:
                return index
            self.next += 1
        return None


@pytest.fixture
def answer():
    return Answer((1, 2, 3), max_tokens=20, cloud=True, device=True)


def test_each_token_is_followed_once_and_what_could_have_come_is_told(answer):
    noted = {}
    follower = GrammarFollower(Counting(), answer, size=9)
    answer.cloud_sent([0, 1])
    follower.follow(lambda index, allowed: noted.setdefault(index, np.flatnonzero(allowed).tolist()))
    answer.cloud_sent([2])
    follower.follow(lambda index, allowed: noted.setdefault(index, np.flatnonzero(allowed).tolist()))
    follower.follow()
    assert noted == {0: [0], 1: [1], 2: [2]}


def test_a_token_that_does_not_fit_is_named(answer):
    follower = GrammarFollower(Counting(), answer, size=9)
    answer.cloud_sent([0, 1, 5])
    with pytest.raises(GrammarRejected, match="position 2"):
        follower.follow()


def test_without_a_grammar_there_is_nothing_to_follow(answer):
    answer.cloud_sent([7])
    GrammarFollower(None, answer, size=9).follow(lambda *_: pytest.fail("there is no grammar"))


class OtherSpelling(Counting):
    """One that takes token 7 for any other."""

    def advance(self, ids):
        return super().advance([self.next if token == 7 else token for token in ids])


def test_what_the_cloud_spells_otherwise_was_allowed(answer):
    noted = []
    answer.cloud_sent([0, 7])
    follower = GrammarFollower(OtherSpelling(), answer, size=9)
    follower.follow(lambda _, allowed: noted.append(np.flatnonzero(allowed).tolist()))
    assert noted == [[0], [1, 7]]


def test_an_id_beyond_the_vocabulary_does_not_fit(answer):
    answer.cloud_sent([0, 9])
    with pytest.raises(GrammarRejected, match="position 1"):
        GrammarFollower(Counting(), answer, size=9).follow(lambda *_: None)
