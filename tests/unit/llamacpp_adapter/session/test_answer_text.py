from __future__ import annotations

import time
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.session.answer_text import AnswerText


def show(pieces, *, stop=(), min_tokens=0):
    """The text shown with each piece, what the end added, and the text object."""
    text = AnswerText(lambda token: pieces[token], stop=stop, min_tokens=min_tokens)
    return [text.push(token) for token in range(len(pieces))], text.flush(), text


def decoded(pieces):
    """The text that there is after each piece: whole characters only."""
    data = b""
    for piece in pieces:
        data += piece
        end = len(data)
        while end and data[:end].decode("utf-8", "ignore").encode() != data[:end]:
            end -= 1
        yield data[:end].decode()


def cut_like_vllm(pieces, stop, min_tokens):
    """``BaseIncrementalDetokenizer.update`` and ``check_stop_strings`` of vLLM, one token at a time."""
    text = ""
    for count, longer in enumerate(decoded(pieces), start=1):
        new = len(longer) - len(text)
        text = longer
        if count <= min_tokens or not new:
            continue
        best = None
        for wanted in stop:
            index = text.find(wanted, max(0, len(text) + 1 - new - len(wanted)))
            if index >= 0 and (best is None or index + len(wanted) < best[0]):
                best = index + len(wanted), index, wanted
        if best is not None:
            return text[: best[1]], best[2]
    return text, None


def pieces_of(text, cuts):
    data = text.encode()
    ends = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    return [data[begin:end] for begin, end in pairwise(ends)]


@pytest.mark.parametrize("stop", ["###", "</s>", "\n\n", "日本", "é", "👩‍🚀"])
def test_a_stop_string_split_at_any_offset_is_found_and_never_half_shown(stop):
    text = f"one {stop[:-1]}two {stop} three"
    data = text.encode()
    for first in range(len(data) + 1):
        for second in range(first, len(data) + 1):
            shown, tail, answer = show([data[:first], data[first:second], data[second:]], stop=[stop])
            assert "".join(shown) == f"one {stop[:-1]}two "
            assert (tail, answer.stopped) == ("", stop)


@given(
    st.text("ab<é日👩", max_size=24),
    st.lists(st.integers(0, 80), max_size=20),
    st.lists(st.text("ab<é日👩", min_size=1, max_size=4), max_size=4),
    st.integers(0, 8),
)
@example("aaab", [1, 2, 3], ["aab"], 2)
@example("abab", [1, 2, 3], ["b", "ab"], 0)
def test_any_split_is_cut_where_vllm_cuts_it(text, cuts, stop, min_tokens):
    pieces = pieces_of(text, cuts)
    shown, tail, answer = show(pieces, stop=stop, min_tokens=min_tokens)
    expected, found = cut_like_vllm(pieces, stop, min_tokens)
    assert answer.stopped == found
    assert "".join(shown) + tail == expected


@given(
    st.text("ab<", max_size=24),
    st.lists(st.integers(0, 24), max_size=12),
    st.text("ab<", min_size=1, max_size=5),
)
def test_no_more_is_withheld_than_could_begin_a_stop_string(text, cuts, stop):
    pieces = pieces_of(text, cuts)
    shown, _, answer = show(pieces, stop=[stop])
    if answer.stopped is None:
        for count, whole in enumerate(decoded(pieces), start=1):
            longest = max(n for n in range(len(stop)) if whole.endswith(stop[:n]))
            assert "".join(shown[:count]) == whole[: len(whole) - longest]


def test_without_stop_strings_text_is_shown_with_its_token():
    assert show([b"one", b" two"])[:2] == (["one", " two"], "")


def test_the_earliest_complete_stop_string_wins():
    shown, tail, answer = show([b"xab", b"cd"], stop=["abcd", "bc"])
    assert (shown, tail, answer.stopped) == (["x", "a"], "", "bc")


def test_text_that_turned_out_harmless_comes_with_the_next_token():
    assert show([b"a<", b"b", b"<"], stop=["</s>"])[:2] == (["a", "<b", ""], "<")


def test_a_stop_string_counts_only_when_it_is_complete_after_min_tokens():
    assert show([b"a.", b"b.", b"c"], stop=["."], min_tokens=1)[2].stopped == "."
    assert show([b"a.", b"b.", b"c"], stop=["."], min_tokens=1)[0] == ["a.", "b", ""]
    assert show([b"a.", b"b.", b"c"], stop=["."], min_tokens=2)[:2] == (["a.", "b.", "c"], "")


def test_a_stop_string_may_begin_within_min_tokens():
    shown, _, answer = show([b"a<", b"/", b"s>b"], stop=["</s>"], min_tokens=2)
    assert (shown, answer.stopped) == (["a", "", ""], "</s>")


def test_nothing_is_shown_after_a_stop_string():
    shown, tail, _ = show([b"a#b", b"c", "é".encode()[:1]], stop=["#"])
    assert (shown, tail) == (["a", "", ""], "")


def test_flush_gives_what_was_withheld_once():
    text = AnswerText(lambda _: b"a<", stop=["<!"])
    assert [text.push(0), text.flush(), text.flush()] == ["a", "<", ""]


def test_an_unfinished_character_at_the_end_is_no_text():
    assert show([b"a", "é".encode()[:1]])[:2] == (["a", ""], "")
    assert show([b"a<", "é".encode()[:1]], stop=["<!"])[:2] == (["a", ""], "<")


def test_long_stop_strings_cost_no_more_than_short_ones():
    pieces = [b"ab" * 8] * 2_000
    begun = time.thread_time()
    shown, tail, _ = show(pieces, stop=["ab" * 10_000 + "!"] * 4)
    assert "".join(shown) + tail == "ab" * 16_000
    assert time.thread_time() - begun < 60  # quadratic, it would be many minutes


def test_a_stop_string_of_megabytes_is_not_read_before_it_could_matter():
    text = AnswerText(lambda _: b"aab", stop=["a" * 2_000_000] * 4)
    assert [text.push(0), text.push(0), text.flush()] == ["aab", "aab", ""]
    assert all(len(search._shorter) <= 4 for search in text._searches)


@pytest.mark.parametrize(("pieces", "shown"), [([b"a#b"], ["a#"]), ([b"a<", b"/s>b"], ["a", "</s>"])])
def test_a_stop_string_can_be_shown(pieces, shown):
    text = AnswerText(lambda token: pieces[token], stop=["#", "</s>"], keeps_stop=True)
    assert [text.push(token) for token in range(len(pieces))] == shown
    assert text.flush() == ""
