"""What every refined prompt keeps to."""

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidRefinement, PDDError
from pdd_core.refinement.check import check_kept, is_kept
from pdd_core.refinement.prompt import RefinePrompt

PROMPT = RefinePrompt(tuple(range(10)), ("a",) * 10, protected=((0, 2), (8, 10)))


@pytest.mark.parametrize("kept", [[0, 1, 8, 9], (0, 1, 4, 8, 9), list(range(10))])
def test_what_keeps_to_it_passes(kept):
    check_kept(kept, 10, PROMPT.protected)
    assert is_kept(kept, PROMPT)


@pytest.mark.parametrize(
    ("kept", "problem"),
    [
        (None, "must be a list, not NoneType"),
        ("0189", "must be a list, not str"),
        (np.array([0, 1, 8, 9]), "must be a list, not ndarray"),
        ({0, 1, 8, 9}, "must be a list, not set"),
        ([0, 1, 8, np.int64(9)], "must be of type int, not int64"),
        ([False, True, 8, 9], "must be of type int, not bool"),
        ([0, 1, 8.0, 9], "must be of type int, not float"),
        ([], "no token is kept"),
        ([0, 1, 9, 8], "8 follows 9"),
        ([0, 1, 8, 8, 9], "8 follows 8"),
        ([-1, 0, 1, 8, 9], "index -1 lies outside of a prompt of 10"),
        ([0, 1, 8, 9, 10], "index 10 lies outside of a prompt of 10"),
        ([0, 1, 8], "token 9 is protected"),
        ([0, 2, 8, 9], "token 1 is protected"),
    ],
)
def test_what_does_not_is_told(kept, problem):
    with pytest.raises(InvalidRefinement, match=re.escape(problem)):
        check_kept(kept, 10, PROMPT.protected)
    assert not is_kept(kept, PROMPT)


def test_of_an_empty_prompt_nothing_can_be_kept():
    for kept in ([], [0]):
        with pytest.raises(PDDError):
            check_kept(kept, 0, ())


@given(kept=st.lists(st.integers(-2, 12), max_size=12))
def test_it_passes_exactly_the_increasing_subsets_with_all_protected(kept):
    valid = kept == sorted(set(kept)) and {0, 1, 8, 9} <= set(kept) <= set(range(10))
    assert is_kept(kept, PROMPT) == valid
