from hypothesis import given
from hypothesis import strategies as st

from pdd_core.timeline import ShownToken, Source
from pdd_llamacpp_adapter.server.responses.events import WordTokens


def reading(*texts):
    tokens = WordTokens()
    for index, text in enumerate(texts):
        tokens.add(ShownToken(index, index, text, Source.CLOUD, 0.0, 0.0))
    return tokens


def indexes(found):
    return [token.index for token in found]


def test_a_token_without_text_of_its_own_belongs_to_the_one_that_brings_it():
    tokens = reading("a", "", "", "\N{SNOWMAN}b", "")
    assert indexes(tokens.of("a")) == [0]
    assert indexes(tokens.of("\N{SNOWMAN}b")) == [1, 2, 3]
    assert indexes(tokens.of("tail")) == [4]


def test_what_is_held_back_of_a_token_does_not_bring_it_twice():
    tokens = reading("a <to", "ol", "box>")
    assert indexes(tokens.of("a ")) == [0]
    assert indexes(tokens.of("<toolbox>")) == [1, 2]


def test_what_the_parsers_dropped_has_no_words():
    tokens = reading("<think>", "so", "</think>", "\n", "so", " <")
    assert indexes(tokens.of("so ")) == [4, 5]
    assert indexes(tokens.of("<")) == []


@given(st.lists(st.text("ab", max_size=3)), st.data())
def test_words_alone_lose_no_token_however_they_are_cut(texts, data):
    text, found, tokens = "".join(texts), [], reading(*texts)
    while text:
        size = data.draw(st.integers(1, len(text)))
        found += indexes(tokens.of(text[:size]))
        text = text[size:]
    trailing = next((index for index in range(len(texts), 0, -1) if texts[index - 1]), 0)
    assert found == list(range(trailing))
