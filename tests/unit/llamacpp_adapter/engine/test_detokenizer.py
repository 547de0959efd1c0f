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
    assert "".join(detokenizer.push(i) for i in range(len(pieces))) + detokenizer.flush() == text


def test_an_unfinished_character_shows_at_the_end_only():
    detokenizer = Detokenizer([b"\xf0\x9f", b"\x8e"].__getitem__)
    assert [detokenizer.push(0), detokenizer.push(1), detokenizer.flush()] == ["", "", "\N{REPLACEMENT CHARACTER}"]
