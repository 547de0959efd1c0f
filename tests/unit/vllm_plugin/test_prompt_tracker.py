"""What both features share; test_windows.py has the steps of a prompt."""

from types import SimpleNamespace

import pytest

from pdd_vllm_plugin.prompt_tracker import PromptTracker

ID = "h" * 32


def new(name="a", length=10, **extra):
    return SimpleNamespace(
        req_id=name, prompt_token_ids=[1] * length, num_computed_tokens=0, block_ids=((1,), (2,)),
        sampling_params=SimpleNamespace(extra_args=extra or None),
    )  # fmt: skip


def step(*begun, tokens=10, finished=()):
    cached = SimpleNamespace(req_ids=[], num_computed_tokens=[], new_block_ids=[], resumed_req_ids=set())
    return SimpleNamespace(
        scheduled_new_reqs=list(begun), scheduled_cached_reqs=cached,
        num_scheduled_tokens={one.req_id: tokens for one in begun}, finished_req_ids=set(finished),
    )  # fmt: skip


WISHES = {"kv": lambda new, opt_in: opt_in.kv, "long": lambda new, opt_in: len(new.prompt_token_ids) > 5}


@pytest.mark.parametrize(
    ("kv", "length", "features"), [(1, 10, {"kv", "long"}), (1, 4, {"kv"}), (0, 10, {"long"}), (0, 4, None)]
)
def test_each_feature_says_whom_it_looks_after(kv, length, features):
    tracker = PromptTracker(WISHES)
    chunks = tracker.step(step(new(length=length, pdd_handoff=ID, pdd_kv=kv)))
    assert [chunk.features for chunk in chunks] == ([] if features is None else [features])
    assert len(tracker) == len(chunks)


def test_a_feature_is_asked_once():
    asked = []
    tracker = PromptTracker({"kv": lambda new, opt_in: asked.append(opt_in.handoff_id) or True})
    tracker.step(step(new(pdd_handoff=ID), tokens=4))
    tracker.step(step(new(pdd_handoff=ID)))  # resumed, as model runner V2 hears of it
    assert asked == [ID]


def test_plain_requests_are_not_read():
    tracker = PromptTracker({"kv": lambda new, opt_in: 1 / 0})
    assert tracker.step(step(new(), new("b", other=3), new("c", pdd_kv=1))) == ()


def test_a_step_may_go_beyond_the_prompt():
    """With speculation, or where a preempted request is computed anew."""
    tracker = PromptTracker(WISHES)
    [chunk] = tracker.step(step(new(pdd_handoff=ID, pdd_kv=1), tokens=13))
    assert chunk.completes
    assert chunk.block_ids == ((1,), (2,))
    tracker.step(step(finished={"a"}))
    assert len(tracker) == 0
