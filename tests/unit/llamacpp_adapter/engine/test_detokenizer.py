from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.detokenizer import Detokenizer


@given(st.text(), st.lists(st.integers(1, 5)))
def test_text_is_whole_wherever_the_bytes_are_cut(text, widths):
    data = text.encode()
    pieces: list[bytes] = []
    for width in widths:
        pieces.append(data[:width])
        data = data[width:]
    pieces.append(data)
    detokenizer = Detokenizer(pieces.__getitem__)
    assert "".join(detokenizer.push(i) for i in range(len(pieces))) == text


def test_an_unfinished_character_is_never_shown_but_one_that_cannot_be_finished_is():
    detokenizer = Detokenizer([b"\xf0\x9f", b"\x8e", b"!"].__getitem__)
    assert [detokenizer.push(0), detokenizer.push(1)] == ["", ""]
    assert detokenizer.push(2) == "\N{REPLACEMENT CHARACTER}!"


def test_a_replacement_character_that_the_model_writes_itself_stays():
    detokenizer = Detokenizer(["a\N{REPLACEMENT CHARACTER}".encode()].__getitem__)
    assert detokenizer.push(0) == "a\N{REPLACEMENT CHARACTER}"
