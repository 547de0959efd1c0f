"""Drafts are made where they pay: by a made-up engine whose steps cost what a test says."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_llamacpp_adapter.engine.drafting import MOST_ROWS, LookupDrafter, StepCosts

SINGLE = 0.05


def costs_of(*, slope):
    """Return what an engine costs, and what is known of it after single steps."""
    costs = StepCosts()
    for _ in range(5):
        costs.measured(1, SINGLE)
    return costs, lambda rows: SINGLE * (1 + slope * (rows - 1))


def played(prompt, answer, *, slope, most=100, hiccups=()):
    """Return (seconds, steps with a draft, tokens drafted) of an answer that is made step by step."""
    costs, seconds_of = costs_of(slope=slope)
    drafter = LookupDrafter(prompt, left=len(answer), costs=costs)
    drafter.made(answer[0])
    made, seconds, drafted, steps = 1, 0.0, 0, 0
    while made < len(answer):
        draft = list(drafter.draft(most))
        assert len(draft) <= min(most, MOST_ROWS - 1, len(answer) - made - 1)
        right = 0
        while right < len(draft) and draft[right] == answer[made + right]:
            right += 1
        took = seconds_of(1 + len(draft)) * (10 if made in hiccups else 1)
        for token in answer[made : made + right + 1]:
            drafter.made(token)
        drafter.took(took, rows=1 + len(draft), made=right + 1)
        made, seconds = made + right + 1, seconds + took
        drafted, steps = drafted + len(draft), steps + bool(draft)
    return seconds, steps, drafted


def words(seed, count, size=40):
    drawn = random.Random(seed)
    return [drawn.randrange(size) for _ in range(count)]


@pytest.mark.parametrize("slope", [0.02, 0.25, 0.5])
def test_an_answer_that_repeats_the_prompt_is_much_faster(slope):
    prompt = words(1, 400, size=5000)
    seconds, _, _ = played(prompt, prompt[:200], slope=slope)
    best = SINGLE * (1 + slope * (MOST_ROWS - 1)) / MOST_ROWS
    assert seconds < 200 * (best + 0.2 * (SINGLE - best))


@pytest.mark.parametrize("slope", [0.02, 0.25, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [4, 40, 4000])
def test_an_answer_of_its_own_words_loses_next_to_nothing(slope, size):
    seconds, _, _ = played(words(1, 400, size), words(2, 300, size), slope=slope)
    assert seconds < 300 * SINGLE * 1.02 + 4 * SINGLE * (1 + slope * (MOST_ROWS - 1))


@given(
    st.lists(st.integers(0, 3), min_size=1, max_size=80),
    st.lists(st.integers(0, 3), min_size=1, max_size=200),
    st.sampled_from([0.02, 0.3, 1.0, 3.0]),
    st.integers(0, 20),
)
def test_what_drafts_lose_is_bounded_whatever_is_written(prompt, answer, slope, most):
    seconds, _, _ = played(prompt, answer, slope=slope, most=most)
    largest = SINGLE * (1 + slope * (MOST_ROWS - 1))
    assert seconds <= len(answer) * SINGLE * 1.02 + 3 * SINGLE + largest


def test_the_longest_wait_for_a_draft_that_is_all_wrong_is_that_of_a_short_one():
    prompt, answer = words(1, 300, size=5000), words(2, 40, size=5000)
    for begin in range(0, 280, 7):  # begins to quote, and goes on otherwise
        answer += [*prompt[begin : begin + 3], 6000 + begin]
    costs, _ = costs_of(slope=0.01)
    drafter = LookupDrafter(prompt, left=len(answer), costs=costs)
    for token in answer:
        drafter.made(token)
        draft = drafter.draft(100)
        assert len(draft) <= 3
        if draft:
            drafter.took(SINGLE, rows=1 + len(draft), made=1)


def test_where_batches_cost_as_much_as_their_tokens_drafts_end_soon():
    prompt = words(1, 400, size=5000)
    _, steps, drafted = played(prompt, prompt[:300], slope=1.0)
    assert steps < 30, drafted


def test_hiccups_do_not_end_drafts_that_pay():
    prompt = words(1, 600, size=5000)
    calm, _, _ = played(prompt, prompt[:500], slope=0.25)
    _, steps, drafted = played(prompt, prompt[:500], slope=0.25, hiccups=range(60, 500, 60))
    assert drafted > 250, steps
    assert calm < 500 * SINGLE * 0.45


def test_nothing_is_drafted_before_a_single_step_was_measured_nor_for_the_last_token():
    prompt = [1, 2, 3, 4, 5, 6, 7, 8, 1, 2]
    unknown = LookupDrafter(prompt, left=20, costs=StepCosts())
    unknown.made(3)
    assert unknown.draft(8) == []
    costs, _ = costs_of(slope=0.01)
    costs.measured(8, SINGLE)
    for left, drafted in ((1, 0), (2, 0), (3, 1), (9, 7)):
        drafter = LookupDrafter(prompt, left=left, costs=costs)
        drafter.made(3)
        assert len(drafter.draft(100)) <= drafted
    assert drafter.draft(2) == [4, 5][: len(drafter.draft(2))]


def test_beside_other_answers_a_draft_has_to_be_worth_its_part_of_the_step():
    prompt = words(1, 100, size=5000)
    costs, seconds_of = costs_of(slope=0.5)
    for rows in (4, 8, 16, 32):
        for _ in range(5):
            costs.measured(rows, seconds_of(rows))

    def likely(beside):
        drafter = LookupDrafter(prompt, left=50, costs=costs)
        for token in prompt[:20]:
            drafter.made(token)
            drafter.draft(8)
        return len(drafter.draft(20, beside=beside))

    assert likely(0) > 0
    assert likely(3) > 0


@given(st.lists(st.tuples(st.integers(1, 64), st.floats(1e-4, 10)), max_size=40))
def test_costs_stay_numbers_whatever_is_measured(steps):
    costs = StepCosts()
    for rows, seconds in steps:
        costs.measured(rows, seconds)
    known = [costs.seconds(rows) for rows in range(1, 64)]
    if any(rows == 1 for rows, _ in steps):
        assert all(0 < seconds < float("inf") for seconds in known)
    else:
        assert set(known) == {None}


def test_what_is_measured_is_what_is_told():
    costs, seconds_of = costs_of(slope=0.3)
    for rows in (4, 8, 16) * 5:
        costs.measured(rows, seconds_of(rows))
    for rows in (1, 4, 6, 8, 12, 16):
        assert costs.seconds(rows) == pytest.approx(seconds_of(rows), rel=0.05)
