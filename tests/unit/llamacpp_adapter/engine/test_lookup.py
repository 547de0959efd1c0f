"""What followed the same tokens before, found as a search through the whole text would find it."""

from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.lookup import SIZES, PromptLookup

TEXTS = st.lists(st.integers(0, 3), max_size=60)


def newest(text, size):
    """The position behind the newest earlier occurrence of the text's last `size` tokens, by searching."""
    ends = [end for end in range(size, len(text)) if text[end - size : end] == text[-size:]]
    return ends[-1] if len(text) >= size and ends else None


@given(text=TEXTS, begun=st.integers(0, 60), most=st.integers(0, 20))
def test_a_draft_follows_the_same_tokens_elsewhere(text, begun, most):
    lookup = PromptLookup(text[:begun])
    for token in text[begun:]:
        lookup.append(token)
    draft = lookup.draft(most)
    found = {size: newest(text, size) for size in SIZES}
    assert bool(lookup.matched) == any(place is not None for place in found.values())
    if not lookup.matched:
        assert draft == []
        return
    assert len(draft) == most
    size = lookup.matched
    whole = text + draft
    places = [end for end in range(size, len(text)) if text[end - size : end] == text[-size:]]
    assert any(whole[end : end + most] == draft for end in places), "no such place has this behind it"
    assert size >= next(size for size in SIZES if found[size] is not None), "a longer match was there"


@given(text=TEXTS, more=TEXTS)
def test_it_says_whether_the_next_token_was_the_drafts_first(text, more):
    lookup = PromptLookup(text)
    for token in more:
        draft = lookup.draft(1)
        assert lookup.append(token) == (draft == [token] if draft else None)


@given(text=TEXTS, begun=st.integers(0, 60))
def test_an_index_that_grew_is_one_that_was_built(text, begun):
    grown = PromptLookup(text[:begun])
    for token in text[begun:]:
        grown.append(token)
    assert grown._newest == PromptLookup(text)._newest


def test_a_long_match_goes_on_where_it_is_and_a_repetition_goes_on_for_good():
    lookup = PromptLookup([1, 2, 3, 4, 5, 6, 9, 4, 5, 6, 7, 1, 2, 3])
    assert lookup.draft(4) == [4, 5, 6, 9]
    for token in (4, 5, 6):
        assert lookup.append(token)
    assert (lookup.matched, lookup.draft(2)) == (6, [9, 4]), "the newest 4 5 6 has a 7 behind it"
    assert PromptLookup([7, 8, 7, 8, 7, 8]).draft(5) == [7, 8, 7, 8, 7]


def test_large_ids_are_told_apart():
    most = 2**21 - 1
    lookup = PromptLookup([most, most, most - 1, 5, most, most, most])
    assert lookup.matched == 2
    assert PromptLookup([most, most, most - 1, 5, most, most, most - 1]).draft(1) == [5]
