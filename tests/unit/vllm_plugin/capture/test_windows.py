from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_vllm_plugin.capture.windows import FEATURE, wants_scores, windows
from pdd_vllm_plugin.prompt_tracker import PromptTracker
from pdd_vllm_plugin.question_window import KEY

ID = "h" * 32
W = 4


class WindowTracker:
    """The tracker of prompts, and the windows in what it finds."""

    def __init__(self, window, *, most):
        self.window, self.tracker = window, PromptTracker({FEATURE: wants_scores(most)})

    def __len__(self):
        return len(self.tracker)

    def step(self, scheduler_output):
        return windows(self.tracker.step(scheduler_output), self.window)


def new(name, length, *, done=0, refine=True, blocks=((1,),)):
    extra = {"pdd_handoff": ID, "pdd_refine_ratio": 0.5} if refine else None
    return SimpleNamespace(
        req_id=name, prompt_token_ids=[1] * length, num_computed_tokens=done, block_ids=blocks,
        sampling_params=SimpleNamespace(extra_args=extra),
    )  # fmt: skip


def step(begun=(), going_on=(), *, tokens, finished=(), resumed=()):
    """`going_on`: (name, computed, new blocks)."""
    cached = SimpleNamespace(
        req_ids=[name for name, _, _ in going_on],
        num_computed_tokens=[computed for _, computed, _ in going_on],
        new_block_ids=[blocks for _, _, blocks in going_on],
        resumed_req_ids=set(resumed),
    )
    return SimpleNamespace(
        scheduled_new_reqs=list(begun), scheduled_cached_reqs=cached, num_scheduled_tokens=tokens,
        finished_req_ids=set(finished),
    )  # fmt: skip


def test_a_prompt_in_one_step():
    [chunk] = WindowTracker(W, most=60).step(step([new("a", 10)], tokens={"a": 10}))
    assert (chunk.first, chunk.last, chunk.completes, chunk.handoff_id) == (6, 10, True, ID)


@pytest.mark.parametrize(("question", "first"), [(3, 7), (1, 9), (20, 6)])
def test_a_request_says_how_long_its_question_is(question, first):
    asked = new("a", 10)
    asked.sampling_params.extra_args[KEY] = question
    [chunk] = WindowTracker(W, most=60).step(step([asked], tokens={"a": 10}))
    assert (chunk.first, chunk.last, chunk.window) == (first, 10, 10 - first)


def test_a_shorter_prompt_is_all_window():
    [chunk] = WindowTracker(W, most=60).step(step([new("a", 2)], tokens={"a": 2}))
    assert (chunk.first, chunk.last, chunk.completes) == (0, 2, True)


def test_who_does_not_ask_is_not_followed():
    tracker = WindowTracker(W, most=60)
    assert tracker.step(step([new("a", 10, refine=False)], tokens={"a": 10})) == ()
    assert len(tracker) == 0


def test_a_wrong_opt_in_is_not_followed():
    wrong = new("a", 10)
    wrong.sampling_params.extra_args["pdd_refine_ratio"] = 7
    assert WindowTracker(W, most=60).step(step([wrong], tokens={"a": 10})) == ()


def test_a_prompt_that_is_too_long_to_refine_is_not_followed():
    tracker = WindowTracker(W, most=9)
    assert tracker.step(step([new("a", 10)], tokens={"a": 10})) == ()
    assert len(tracker) == 0
    [chunk] = tracker.step(step([new("b", 9)], tokens={"b": 9}))
    assert chunk.completes


def test_steps_before_the_window_count_for_nothing_and_blocks_add_up():
    tracker = WindowTracker(W, most=60)
    assert tracker.step(step([new("a", 10)], tokens={"a": 4})) == ()
    [part] = tracker.step(step(going_on=[("a", 4, ([2],))], tokens={"a": 4}))
    assert (part.first, part.last, part.completes, part.block_ids) == (6, 8, False, ((1, 2),))
    [rest] = tracker.step(step(going_on=[("a", 8, None)], tokens={"a": 2}))
    assert (rest.first, rest.last, rest.completes) == (8, 10, True)
    assert tracker.step(step(going_on=[("a", 10, None)], tokens={"a": 1})) == ()


def test_a_preempted_request_begins_again_with_other_blocks():
    tracker = WindowTracker(W, most=60)
    tracker.step(step([new("a", 10)], tokens={"a": 8}))
    [chunk] = tracker.step(step(going_on=[("a", 0, ([7, 8],))], tokens={"a": 10}, resumed={"a"}))
    assert (chunk.start, chunk.block_ids, chunk.completes) == (0, ((7, 8),), True)


def test_what_is_complete_is_not_scored_again_after_a_preemption():
    tracker = WindowTracker(W, most=60)
    tracker.step(step([new("a", 10)], tokens={"a": 10}))
    assert tracker.step(step(going_on=[("a", 0, ([7],))], tokens={"a": 12}, resumed={"a"})) == ()
    assert tracker.step(step([new("a", 10)], tokens={"a": 12})) == ()  # as model runner V2 hears of it


def test_a_finished_request_is_forgotten():
    tracker = WindowTracker(W, most=60)
    tracker.step(step([new("a", 10)], tokens={"a": 4}))
    tracker.step(step(tokens={}, finished={"a"}))
    assert len(tracker) == 0


@given(st.integers(1, 60), st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(0, 59))
def test_the_parts_of_a_window_are_its_queries_in_order(length, chunks, hit):
    tracker, computed, positions = WindowTracker(W, most=60), min(hit, length - 1), []
    begun = computed
    for number, size in enumerate([*chunks, length]):
        tokens = min(size, length - computed)
        if not tokens:
            break
        first = [new("a", length, done=computed)] if number == 0 else []
        later = [] if number == 0 else [("a", computed, None)]
        for chunk in tracker.step(step(first, later, tokens={"a": tokens})):
            positions += range(chunk.first, chunk.last)
        computed += tokens
    assert positions == list(range(max(length - W, begun), length))
