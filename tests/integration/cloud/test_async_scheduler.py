"""Budgets under async scheduling, which vLLM switches off on a CPU: vLLM's own scheduler, driven by hand.

The next step is scheduled before the last one's tokens are known.
"""

import random
from functools import partial
from itertools import count

import pytest
from vllm_by_hand import request_by_hand, run, scheduler_by_hand


@pytest.fixture(scope="module")
def make_scheduler(prepared):
    return partial(scheduler_by_hand, prepared.vllm_dir)


def request(name, *, budget, max_tokens, prompt_length, least=None):
    extra = {"pdd_handoff": name * 16, "pdd_decode_budget": budget} if budget else None
    if least:
        extra["pdd_least_budget"] = least
    return request_by_hand(name, range(prompt_length), max_tokens=max_tokens, extra_args=extra)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_budgets_are_exact_with_steps_in_flight(make_scheduler, in_flight):
    scheduler = make_scheduler()
    expected, ends = {}, {}
    for name, budget, limit, length in (
        ("a", 1, 40, 10), ("b", 2, 40, 30), ("c", 7, 40, 100), ("d", 16, 40, 5),
        ("e", None, 9, 20), ("f", 12, 5, 20),
    ):  # fmt: skip
        scheduler.add_request(request(name, budget=budget, max_tokens=limit, prompt_length=length))
        handed_off = budget is not None and budget < limit
        expected[name] = budget if handed_off else limit
        ends[name] = ("length", "pdd_handoff" if handed_off else None)
    assert run(scheduler, in_flight=in_flight) == (expected, ends)
    assert scheduler._pdd_budgeted == {}


class Usage:
    """Stands for the KV cache's, which these small requests would never fill."""

    def __init__(self, monkeypatch, scheduler):
        self.share = 0.0
        pool = scheduler.kv_cache_manager.block_pool
        monkeypatch.setattr(pool, "get_usage", lambda: self.share)


@pytest.mark.parametrize("in_flight", [1, 2])
@pytest.mark.parametrize("at", [1, 3, 4, 5, 9])
def test_a_running_budget_is_lowered_to_what_is_made_and_in_flight(make_scheduler, monkeypatch, in_flight, at):
    scheduler = make_scheduler()
    usage = Usage(monkeypatch, scheduler)
    for name, least in (("a", 4), ("b", 9), ("c", None)):
        scheduler.add_request(request(name, budget=20, least=least, max_tokens=40, prompt_length=10))
    scheduler.add_request(request("d", budget=None, max_tokens=15, prompt_length=10))
    lowered = []

    def load(made):
        if made.get("a", 0) >= at:
            usage.share = 1.0

    asked = scheduler._pdd_decide_budget

    def watched(budgeted, load):
        asked(budgeted, load)
        if load.pressure:
            made, flying = budgeted.request.num_output_tokens, budgeted.request.num_output_placeholders
            lowered.append((budgeted.request.request_id, made, flying, budgeted.budget))

    scheduler._pdd_decide_budget = watched
    made, ends = run(scheduler, in_flight=in_flight, before_step=load)
    assert sorted(name for name, *_ in lowered) == ["a", "b", "c"]
    for name, so_far, flying, budget in lowered:
        assert budget == (20 if name == "c" else max({"a": 4, "b": 9}[name], so_far + max(1, flying)))
        assert made[name] == budget
        assert ends[name] == ("length", "pdd_handoff")
    if in_flight == 2 and at > 4:
        assert any(flying for _, _, flying, _ in lowered), "no token was in flight: nothing was tested"
    assert (made["d"], ends["d"]) == (15, ("length", None))


@pytest.mark.parametrize("in_flight", [1, 2])
def test_budgets_are_raised_again_and_exact(make_scheduler, monkeypatch, in_flight):
    scheduler = make_scheduler()
    clock = iter(range(1000))
    monkeypatch.setattr("pdd_vllm_plugin.scheduler_mixin.time.monotonic", lambda: next(clock))
    usage = Usage(monkeypatch, scheduler)
    scheduler.add_request(request("a", budget=20, least=12, max_tokens=40, prompt_length=10))

    def load(made):
        usage.share = 1.0 if 2 <= made.get("a", 0) < 4 else 0.0

    made, ends = run(scheduler, in_flight=in_flight, before_step=load)
    assert made == {"a": 20}
    assert ends == {"a": ("length", "pdd_handoff")}


@pytest.mark.parametrize("in_flight", [1, 2])
def test_any_load_leaves_budgets_within_their_bounds(make_scheduler, monkeypatch, in_flight):
    draw = random.Random(in_flight)
    clock = iter(count())
    monkeypatch.setattr("pdd_vllm_plugin.scheduler_mixin.time.monotonic", lambda: next(clock))
    for _ in range(8):
        scheduler = make_scheduler()
        usage = Usage(monkeypatch, scheduler)
        bounds = {}
        for name in "abcdefghijkl":  # more than run at once
            budget = draw.randint(1, 24)
            least, limit = draw.choice([None, draw.randint(1, budget)]), draw.randint(1, 30)
            bounds[name] = (min(least or budget, limit), min(budget, limit), limit)
            length = draw.randint(5, 90)
            scheduler.add_request(
                request(name, budget=budget, least=least, max_tokens=limit, prompt_length=length)
            )

        def load(made, usage=usage):
            usage.share = draw.choice([usage.share, draw.random() * 1.1])

        made, ends = run(scheduler, in_flight=in_flight, before_step=load)
        for name, (least, most, limit) in bounds.items():
            assert least <= made[name] <= most
            assert ends[name] == ("length", "pdd_handoff" if made[name] < limit else None)
        assert scheduler._pdd_budgeted == {}


def test_the_classes_keep_vllms_schedulers_behind_the_policy():
    from vllm.v1.core.sched.async_scheduler import AsyncScheduler
    from vllm.v1.core.sched.scheduler import Scheduler

    from pdd_vllm_plugin.scheduler import PDDAsyncScheduler, PDDScheduler
    from pdd_vllm_plugin.scheduler_mixin import BudgetMixin

    assert PDDAsyncScheduler.__mro__[1:4] == (BudgetMixin, AsyncScheduler, Scheduler)
    assert PDDScheduler.__mro__[1:3] == (BudgetMixin, Scheduler)
    assert not issubclass(PDDScheduler, AsyncScheduler)
