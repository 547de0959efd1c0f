import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ContextOverflow
from pdd_llamacpp_adapter.engine.control_texts import BRACKET, TOGETHER, ControlTexts

ALPHABET = "<>[]|a "
CONTROL = st.dictionaries(
    st.text(ALPHABET, min_size=1, max_size=5) | st.sampled_from(["<a>", "<|a|>", "[a]", "<>", "  ", "a"]),
    st.booleans(),
    max_size=5,
)


def partition(text, control):
    """``llama_vocab::impl::tokenizer_st_partition``: the longest first, wherever it stands; some strip the text
    before them. Pairs of a text and whether it is a token."""
    parts = [(text, False)] if text else []
    for token in sorted(control, key=len, reverse=True):
        made = []
        for part, is_token in parts:
            if is_token:
                made.append((part, True))
                continue
            *before, last = part.split(token)
            for left in before:
                left = left.rstrip(" ") if control[token] else left
                made += [(left, False)] if left else []
                made.append((token, True))
            made += [(last, False)] if last else []
        parts = made
    return parts


@given(CONTROL, st.lists(st.text(ALPHABET, max_size=6) | st.sampled_from(["<a>", "<|a|>", "[a]"]), max_size=12))
def test_the_pieces_are_partitioned_as_the_whole_is(control, words):
    text = "".join(words)
    bracketed = {token: not strips for token, strips in control.items() if BRACKET.search(token)}
    texts = ControlTexts(bracketed, together=1)
    pieces = list(texts.cut(text))
    assert "".join(pieces) == text
    assert [part for piece in pieces for part in partition(piece, control)] == partition(text, control)


def test_a_text_is_cut_before_every_so_many_control_tokens():
    texts = ControlTexts({"<|end|>": True, "[INST]": True})
    pieces = list(texts.cut("x<|end|>y[INST]" * TOGETHER))
    assert [piece.count("<|end|>") + piece.count("[INST]") for piece in pieces] == [TOGETHER - 1, TOGETHER, 1]
    assert all(piece.startswith(("<|end|>", "[INST]")) for piece in pieces[1:])


@pytest.mark.parametrize("text", ["", "x" * 1000, "<|no|>" * 1000, "<|end|" * 1000, "<" * 100_000])
def test_a_text_without_them_is_one_piece(text):
    assert list(ControlTexts({"<|end|>": True}).cut(text)) == [text]


def test_more_control_tokens_than_tokens_fit_are_refused_before_anything_is_split():
    texts = ControlTexts({"<|end|>": True})
    texts.check("<|end|>" * 9, most=9)
    with pytest.raises(ContextOverflow, match="maximum context length is 8 tokens"):
        texts.check("a <|end|> b" * 9, most=8)
