"""Spans, words and lines."""

import re
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import InvalidRefinement
from pdd_core.refinement.prompt import RefinePrompt
from pdd_core.refinement.spans import LONGEST_LINE, LONGEST_WORD, lines, merge_spans, spans_of, unit_starts, words

texts = st.lists(
    st.sampled_from(["a", " b", "4", " ", "\n", "\n\n", ".", ".\n", "c ", "", "é", "。"]), max_size=200
)
loose = st.lists(st.tuples(st.integers(-5, 40), st.integers(-5, 40)), max_size=12)


def cut(pieces, spans):
    return ["".join(pieces[start:end]) for start, end in spans]


@given(spans=loose, length=st.integers(0, 30))
def test_merged_spans_are_the_same_tokens_sorted_and_apart(spans, length):
    merged = merge_spans(spans, length)
    wanted = {index for start, end in spans for index in range(start, end) if 0 <= index < length}
    assert {index for start, end in merged for index in range(start, end)} == wanted
    bounds = [bound for span in merged for bound in span]
    assert bounds == sorted(set(bounds))


@given(st.lists(st.integers(0, 40)))
def test_the_spans_of_indices_are_their_runs(indices):
    spans = spans_of(indices)
    assert [index for start, end in spans for index in range(start, end)] == sorted(set(indices))
    assert spans == merge_spans(spans, 41)


@pytest.mark.parametrize("unit", [words, lines])
@given(pieces=texts)
def test_units_are_all_tokens_in_order_and_none_too_long(unit, pieces):
    spans = unit(pieces)
    assert [index for start, end in spans for index in range(start, end)] == list(range(len(pieces)))
    assert all(0 < end - start <= (LONGEST_WORD if unit is words else LONGEST_LINE) for start, end in spans)


def test_a_word_has_the_blanks_before_it_and_keeps_its_digits_together():
    pieces = ["The", " key", " is", " ", "4", "8", "2", "9", ".", "\n", "\n", "Gr", "", "üße", " ", "x"]
    assert cut(pieces, words(pieces)) == ["The", " key", " is", " 4829.", "\n\nGrüße", " x"]


def test_a_piece_that_ends_with_a_blank_ends_a_word():
    pieces = ["end.\n", "Begin", " of ", "it"]
    assert cut(pieces, words(pieces)) == ["end.\n", "Begin", " of ", "it"]


def test_text_without_blanks_is_cut():
    assert words(["漢"] * 70) == [(0, 32), (32, 64), (64, 70)]


def test_a_line_has_its_newlines_and_its_indentation():
    pieces = ["\n", "def", " f", ":", "\n", "    ", "pass", "\n", "\n", "x", ".\n", "y"]
    assert cut(pieces, lines(pieces)) == ["\n", "def f:\n", "    pass\n\n", "x.\n", "y"]


def test_a_paragraph_is_cut_after_its_sentences_and_a_short_line_is_not():
    short = ["One", ".", " Two", ".", "\n"]
    long = [*["w"] * 50, ".", *[" v"] * 20, ".", " u", "."]
    assert cut(short + long, lines(short + long)) == [
        "One. Two.\n",
        "w" * 50 + ".",
        " v" * 20 + ".",
        " u.",
    ]


WRAPPED = "There is no type of\nsophisticated and cheap engine, said\nAda Lovelace.\nA new line begins.\n"


def test_a_line_that_ends_no_sentence_runs_on_to_its_end():
    pieces = re.findall(r"\n|\S+| +", WRAPPED)
    assert cut(pieces, lines(pieces)) == [WRAPPED[:-19], "A new line begins.\n"]


@pytest.mark.parametrize(
    "apart",
    [
        ["It ends.\n", "and again\n"],
        ["“It ends!”\n", "and again\n"],
        ["It ends。\n", "and again\n"],
        ["a paragraph\n\n", "another\n"],
        ["a paragraph\n  \n", "another\n"],
        ["These are:\n", "one\n"],
        ["- an item\n", "- another\n", "3. more\n"],
        ["| a | b\n", "| c | d\n"],
        ["A Title\n", "Then text.\n"],
        ["x = [1]\n", "[y] = x\n"],
    ],
)
def test_a_line_that_is_no_part_of_a_sentence_is_alone(apart):
    pieces = [piece for line in apart for piece in re.findall(r"\n|[^\s]+| +", line)]
    assert cut(pieces, lines(pieces)) == apart


def test_a_sentence_of_many_lines_is_cut_after_a_line():
    row = [*[" w"] * 29, " v", "\n"]
    long = [*row, *row, *row]
    assert lines(long) == [(0, 31), (31, 62), (62, 93)]
    assert lines([*long[:-1], ".", "\n", *["u"] * 10, "."]) == [(0, 31), (31, 62), (62, 94), (94, 105)]


def test_lines_that_run_on_over_several_sentences_are_cut_after_them():
    text = [*[" w"] * 20, "\n", *["w"] * 10, ".", *[" v"] * 20, "\n", *["w"] * 20, ".", "\n"]
    assert lines(text) == [(0, 32), (32, 75)]


@given(pieces=st.lists(st.sampled_from(["no", " stop", ",", "\n"]), min_size=1, max_size=LONGEST_LINE))
def test_no_unit_ends_within_a_sentence_of_lower_case_words(pieces):
    for _, end in lines(pieces):
        before, after = "".join(pieces[:end]), "".join(pieces[end:])
        alone = not before.strip() or not after or after.startswith(",")
        assert alone or before.endswith("\n\n")


def test_an_unknown_unit_is_told():
    with pytest.raises(ValueError, match="unit must be one of token, word, line, not 'page'"):
        unit_starts(["a"], "page")


def test_a_prompt_keeps_its_protected_spans_in_order_and_within_itself():
    prompt = RefinePrompt((5, 6, 7, 8, 9), ("a",) * 5, protected=((3, 9), (0, 1), (1, 2), (4, 4), (-3, 1)))
    assert prompt.protected == ((0, 2), (3, 5))
    assert prompt.protected_indices() == [0, 1, 3, 4]
    assert (prompt.num_protected, len(prompt)) == (4, 5)


def test_a_prompt_needs_a_text_for_each_token():
    with pytest.raises(InvalidRefinement, match="1 pieces for 2 tokens"):
        RefinePrompt((1, 2), ("a",))


def test_what_a_prompt_is_needs_no_numpy():
    code = "import sys, pdd_core.refinement.protect, pdd_core.refinement.check, pdd_core.refinement.target"
    code += "; from pdd_core import RefinePrompt, PromptScores; print('numpy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
