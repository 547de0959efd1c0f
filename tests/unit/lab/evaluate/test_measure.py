from __future__ import annotations

import numpy as np
import pytest
from evaluate_fakes import CopyingReader

from pdd_lab.evaluate.case_prompts import evidence_span
from pdd_lab.evaluate.cases import ExamCase
from pdd_lab.evaluate.measure import GIVEN, LEAST_POSITIONS, POSITIONS, Examiner
from pdd_lab.evaluate.results import ResultStore, kept_key

LAYERS = (4, 5)
FILLING = " ".join(
    f"Sentence {number} of this text says nothing that matters to anybody ." for number in range(30)
)


def case(*, number=0, expected="417", document=None):
    hidden = f"The pass key is {expected}." if document is None else document
    return ExamCase("recall", "passkey", number, f"{FILLING}\n\n{hidden}\n\n{FILLING}", "What is the pass key ?",
                "The pass key is", expected, 0.5, hidden)  # fmt: skip


def open_case():
    document = " ".join(f"word{number}" for number in range(200))
    return ExamCase("agreement", "open", 1, document, "How does it go on?", "word19 word20 word21")


@pytest.fixture
def reader():
    return CopyingReader()


@pytest.fixture
def examiner(reader, tmp_path):
    return Examiner(reader, ResultStore(tmp_path), window=16, layers=LAYERS, heads="max")


def test_an_answer_that_begins_with_what_is_expected_is_right(examiner):
    record, prompt = examiner.full(case())
    assert record["right"]
    assert record["compared"] == [0, 1]
    assert record["text"].startswith(" 417")
    assert len(record["cloud"]) == len(record["answer"]) >= GIVEN
    assert record["prompt_tokens"] == len(prompt)
    assert record["protected"] == prompt.num_protected


def test_another_answer_is_wrong(examiner):
    record, _ = examiner.full(case(document="The pass key is 99."))
    assert not record["right"]
    assert record["compared"] is None


def test_an_open_answer_is_compared_behind_the_clouds_tokens(examiner):
    record, _ = examiner.full(open_case())
    assert record["right"]
    assert record["compared"] == [GIVEN, len(record["answer"])]
    assert GIVEN + LEAST_POSITIONS <= len(record["answer"]) <= GIVEN + POSITIONS


def test_a_refined_prompt_is_as_good_as_what_it_keeps(examiner):
    asked = case()
    record, prompt = examiner.full(asked)
    hidden = [index for index, piece in enumerate(prompt.pieces) if piece in (" key", " 417", " is", " pass")]
    with_it = sorted({*prompt.protected_indices(), *hidden})
    without = prompt.protected_indices()
    keys = examiner.outcomes(asked, record, prompt, [range(len(prompt)), without, with_it])
    assert keys == [kept_key(range(len(prompt))), kept_key(without), kept_key(with_it)]
    full, bad, good = (record["outcomes"][key] for key in keys)
    assert (full["score"], bad["score"], good["score"]) == (1, 0, 1)
    assert [outcome["kept"] for outcome in (full, bad, good)] == [len(prompt), len(without), len(with_it)]
    assert bad["same"][0] == "0"
    assert good["same"][0] == "1"
    assert bad["device"][0] < -10 < -1 < good["device"][0]


def test_an_outcome_says_whether_all_of_the_evidence_was_kept(examiner):
    asked = case()
    record, prompt = examiner.full(asked)
    start, end = evidence_span(asked, prompt)
    assert "".join(prompt.pieces[start:end]).strip() == asked.evidence
    wholly = sorted({*prompt.protected_indices(), *range(start, end)})
    partly = [index for index in wholly if index != start + 1]
    keys = examiner.outcomes(asked, record, prompt, [wholly, partly])
    assert [record["outcomes"][key]["evidence"] for key in keys] == [True, False]


def test_an_open_question_has_no_one_place(examiner):
    asked = open_case()
    assert evidence_span(asked, examiner.prompt(asked)) is None


def test_an_open_answer_agrees_wholly_with_itself(examiner):
    asked = open_case()
    record, prompt = examiner.full(asked)
    keys = examiner.outcomes(asked, record, prompt, [prompt.protected_indices(), range(len(prompt))])
    nothing, full = (record["outcomes"][key] for key in keys)
    assert (full["score"], full["kl"]) == (1, 0)
    assert nothing["score"] < 1
    assert nothing["kl"] > 0


def test_each_refined_prompt_is_read_once_and_neighbours_share_their_beginnings(examiner, reader):
    asked = case()
    record, prompt = examiner.full(asked)
    must = prompt.protected_indices()
    free = sorted(set(range(len(prompt))) - set(must))
    lists = [sorted([*must, *free[start : start + 20]]) for start in (40, 0, 20, 0)]
    keys = examiner.outcomes(asked, record, prompt, lists)
    assert keys[1] == keys[3]
    assert len(reader.forces) == 3
    opening = tuple(record["opening"])
    assert reader.forces == [
        (*(prompt.token_ids[index] for index in kept), *opening) for kept in sorted(map(list, lists[:3]))
    ]


def test_what_is_known_is_not_measured_again(reader, examiner, tmp_path):
    asked = case()
    record, prompt = examiner.full(asked)
    scores = examiner.scores(asked, prompt)
    examiner.outcomes(asked, record, prompt, [prompt.protected_indices()])
    reads, forces = len(reader.reads), len(reader.forces)
    again = Examiner(reader, ResultStore(tmp_path), window=16, layers=LAYERS, heads="max")
    known, prompt = again.full(asked)
    assert known == record
    assert np.array_equal(again.scores(asked, prompt).values, scores.values)
    again.outcomes(asked, known, prompt, [prompt.protected_indices()])
    assert (len(reader.reads), len(reader.forces)) == (reads, forces)


def test_other_scores_of_the_same_case_are_read(reader, examiner, tmp_path):
    asked = case()
    _, prompt = examiner.full(asked)
    other = Examiner(reader, ResultStore(tmp_path), window=8, layers=LAYERS, heads="mean").scores(asked, prompt)
    assert (other.window, other.heads, other.layers) == (8, "mean", LAYERS)
    assert len(reader.reads) == 2


def test_a_run_that_is_stopped_keeps_what_was_measured(reader, examiner, tmp_path):
    asked = case()
    record, prompt = examiner.full(asked)
    measured, reader.forced = reader.forced, None  # the first list is measured, the second one fails

    def once(*arguments):
        reader.forced = None
        return measured(*arguments)

    reader.forced = once
    must = prompt.protected_indices()
    more = sorted({*must, *range(60)})
    with pytest.raises(TypeError):
        examiner.outcomes(asked, record, prompt, [must, more])
    kept = ResultStore(tmp_path).record(asked)["outcomes"]
    assert len(kept) == 1
