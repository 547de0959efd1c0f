from __future__ import annotations

import random

import pytest

from pdd_core.errors import ConfigurationError
from pdd_lab.evaluate.cases import CaseSource
from pdd_lab.evaluate.documents import LONGEST, OVERSHOOT, SHORTEST, Library, paragraphs, read_library
from pdd_lab.evaluate.evaluation_settings import EvalSettings
from pdd_lab.evaluate.tasks import MAKERS


def count(text):
    return len(text.split())


@pytest.fixture(scope="module")
def source():
    return CaseSource(read_library(()), count, EvalSettings().length)


def made(source, task, numbers=40):
    return [case for number in range(numbers) if (case := MAKERS[task](source, number)) is not None]


@pytest.mark.parametrize("task", MAKERS)
def test_a_case_is_the_same_each_time(source, task):
    again = CaseSource(read_library(()), count, EvalSettings().length)
    assert made(source, task) == made(again, task)


@pytest.mark.parametrize("task", MAKERS)
def test_what_holds_the_answer_stands_once_in_the_document(source, task):
    for case in made(source, task):
        assert (case.evidence == "") == (case.expected == "")
        if case.evidence:
            assert case.document.count(case.evidence) == 1
            assert case.expected in case.evidence


@pytest.mark.parametrize("task", MAKERS)
def test_no_two_cases_share_a_key(source, task):
    cases = made(source, task)
    assert len(cases) >= 30
    assert len({case.key for case in cases}) == len(cases)


@pytest.mark.parametrize("task", MAKERS)
def test_documents_have_about_the_length_asked_for(source, task):
    for case in made(source, task):
        length = source.length(case.number // 2 if task == "recall" else case.number)
        assert abs(count(case.document) - length) < 130


def test_another_text_is_another_key(source):
    case = MAKERS["recall"](source, 0)
    other = CaseSource(Library((tuple(reversed(source.library.documents[0])) * 9,)), count, source.length)
    assert MAKERS["recall"](other, 0).key != case.key


def test_lengths_are_spread_evenly_over_the_doublings():
    lengths = [EvalSettings(shortest=100, longest=400).length(number) for number in range(100)]
    assert 100 <= min(lengths) < 110
    assert 380 < max(lengths) <= 400
    assert sum(length < 200 for length in lengths) == pytest.approx(50, abs=2)


def test_hidden_numbers_stand_once_in_the_document_and_at_all_depths(source):
    cases = made(source, "recall")
    assert [case.kind for case in cases[:4]] == ["passkey", "key-value", "passkey", "key-value"]
    for case in cases:
        assert case.document.count(f"{case.opening} {case.expected}.") == 1
        assert case.expected not in case.question
        assert case.document.count("The code of the ") == (0 if case.kind == "passkey" else 4)
    assert {case.depth for case in cases} == {0, 0.25, 0.5, 0.75, 1}
    first, last = (next(case for case in cases if case.depth == depth) for depth in (0, 1))
    assert first.document.startswith(first.opening)
    assert last.document.endswith(f"{last.expected}.")


def test_the_words_asked_for_come_once_and_behind_the_opening(source):
    for case in made(source, "answers"):
        beginning = case.opening.removeprefix("The sentence is: ")
        assert f"{beginning} {case.expected}" in case.document
        assert case.document.count(case.expected) == 1
        assert case.expected not in case.question
        ending = case.question.split('"')[1]
        assert ending in case.document
        assert beginning not in case.question


def test_a_text_without_sentences_has_no_question():
    library = Library((("words without any end " * 10,) * 30,))
    assert MAKERS["answers"](CaseSource(library, count, lambda _: 100), 0) is None


def test_drawn_paragraphs_follow_each_other():
    library = Library((tuple("abcdefgh"), tuple("ijklmnop")))
    for seed in range(20):
        drawn = "".join(library.draw(random.Random(seed), 5, len))
        assert len(drawn) == 5
        assert drawn in "abcdefghijklmnop" * 2


def test_a_long_paragraph_is_not_left_out_where_it_is_the_first():
    assert Library((("long " * 50,),)).draw(random.Random(0), 10, count) == ["long " * 50]


@pytest.mark.parametrize("size", [2_000, 400])
def test_paragraphs_of_many_tokens_do_not_outgrow_the_room_beyond_a_document(size):
    """A script that the vocabulary does not know takes several tokens a character."""
    library = Library((tuple("字" * size for _ in range(30)),))
    for seed in range(20):
        drawn = library.draw(random.Random(seed), 300, len)
        assert 0 < sum(map(len, drawn)) <= 300 + OVERSHOOT


def test_long_paragraphs_without_blanks_are_cut_after_a_sentence():
    sentence = "这是一段很长的文字里的一句话。"
    pieces = list(paragraphs(sentence * 100))
    assert "".join(pieces) == sentence * 100
    assert all(SHORTEST <= len(piece) <= LONGEST and piece.endswith("。") for piece in pieces)


def test_paragraphs_are_prose_on_one_line():
    prose = "The first line of the text\ngoes on here, and it says something at length,\n   that matters to us."
    text = f"{prose}\n\nshort\n\n{'=' * 90}\n\nwith_stmt ::= {prose}\n\n{prose}"
    assert list(paragraphs(text)) == [" ".join(prose.split())] * 2


def test_long_paragraphs_are_cut_after_a_sentence():
    sentence = "This sentence is one of many that follow each other in one long paragraph. "
    pieces = list(paragraphs(sentence * 30))
    assert "".join(f"{piece} " for piece in pieces) == sentence * 30
    assert all(SHORTEST <= len(piece) <= LONGEST and piece.endswith(".") for piece in pieces)


def test_a_users_text_is_read(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text(
        "\n\n".join(f"Paragraph {n} of these notes says that all is well, {'and well ' * 8}." for n in range(25))
    )
    (document,) = read_library([file]).documents
    assert len(document) == 25


@pytest.mark.parametrize(("content", "message"), [(b"too short", "0 paragraphs"), (b"\xff\xfe\xff", "UTF-8")])
def test_a_text_that_will_not_do_is_refused(tmp_path, content, message):
    file = tmp_path / "notes.txt"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError, match=message):
        read_library([file])


def test_a_missing_text_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="none"):
        read_library([tmp_path / "none.txt"])
