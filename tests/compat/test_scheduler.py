"""Both schedulers, with vLLM's own KV cache manager behind them; whoever calls them plays the model."""

from functools import partial

import pytest
from vllm_by_hand import BLOCK, model_output, request_by_hand, run, scheduler_by_hand

from pdd_vllm_plugin.budgeted_request import SURELY_TOLD
from pdd_vllm_plugin.deployment import WORKER_CLS

ID = "h" * 32


@pytest.fixture(params=["PDDAsyncScheduler", "PDDScheduler"])
def cls(request):
    return request.param


@pytest.fixture
def make_scheduler(model_dir, cls):
    return partial(scheduler_by_hand, model_dir, cls=cls)


def opted_in(name, length, *, budget=None, refine=None, max_tokens=40):
    extra = {"pdd_handoff": name * 32, "pdd_decode_budget": budget, "pdd_refine_ratio": refine}
    given = {field: value for field, value in extra.items() if value is not None}
    return request_by_hand(name, range(length), max_tokens=max_tokens, extra_args=given)


@pytest.mark.parametrize("in_flight", [1, 2])
def test_budgets_are_exact_and_marked(make_scheduler, cls, in_flight):
    if in_flight == 2 and cls == "PDDScheduler":
        pytest.skip("vLLM has several steps in flight with the async scheduler only")
    scheduler = make_scheduler()
    for name, budget, length in (("a", 1, 10), ("b", 2, 30), ("c", 7, 100), ("d", 16, 5)):
        scheduler.add_request(opted_in(name, length, budget=budget))
    scheduler.add_request(opted_in("e", 20, budget=12, max_tokens=5))  # the client's own limit comes first
    scheduler.add_request(request_by_hand("f", range(20), max_tokens=9))
    made, ends = run(scheduler, in_flight=in_flight)
    assert made == {"a": 1, "b": 2, "c": 7, "d": 16, "e": 5, "f": 9}
    marked = ("length", "pdd_handoff")
    assert ends == {**dict.fromkeys("abcd", marked), **dict.fromkeys("ef", ("length", None))}
    assert scheduler._pdd_budgeted == {}
    assert not scheduler._pdd_admission.failed
    assert not scheduler._pdd_failsafe.failed


def test_an_abort_forgets_the_budget(make_scheduler):
    from vllm.v1.request import RequestStatus

    scheduler = make_scheduler()
    scheduler.add_request(opted_in("a", 10, budget=9))
    scheduler.add_request(opted_in("b", 10, budget=3))
    step = scheduler.schedule()
    scheduler.update_from_output(step, model_output(scheduler, step))
    finished = scheduler.finish_requests(["a"], RequestStatus.FINISHED_ABORTED)
    assert [request.request_id for request in finished] == ["a"]
    assert list(scheduler._pdd_budgeted) == ["b"]
    assert run(scheduler, in_flight=1)[1] == {"b": ("length", "pdd_handoff")}


def test_the_budget_is_told_with_the_first_outputs_and_the_last(make_scheduler):
    scheduler = make_scheduler()
    scheduler.add_request(opted_in("a", 10, budget=6))
    reports = []
    while scheduler.has_unfinished_requests():
        step = scheduler.schedule()
        for of_client in scheduler.update_from_output(step, model_output(scheduler, step)).values():
            reports += [out.kv_transfer_params for out in of_client.outputs]
    assert [bool(report) for report in reports] == [*[True] * SURELY_TOLD, False, False, True]
    assert {(report["pdd"]["tokens"], report["pdd"]["set_by"]) for report in reports if report} == {(6, "client")}


def test_running_budgets_follow_the_load(make_scheduler, monkeypatch):
    scheduler = make_scheduler()
    usage = [0.0]
    monkeypatch.setattr(scheduler.kv_cache_manager.block_pool, "get_usage", lambda: usage[0])
    scheduler.add_request(request_by_hand(
        "a", range(10), max_tokens=40,
        extra_args={"pdd_handoff": ID, "pdd_decode_budget": 20, "pdd_least_budget": 5},
    ))  # fmt: skip
    scheduler.add_request(request_by_hand("b", range(10), max_tokens=12))

    def load(made):
        usage[0] = 1.0 if made.get("a", 0) >= 2 else 0.0

    made, ends = run(scheduler, in_flight=1, before_step=load)
    assert (made, ends["a"]) == ({"a": 5, "b": 12}, ("length", "pdd_handoff"))


def begun_at(scheduler, request):
    """Run `request`; return how many of its prompt tokens the prefix cache gave."""
    scheduler.add_request(request)
    computed = []
    while scheduler.has_unfinished_requests():
        step = scheduler.schedule()
        computed += [new.num_computed_tokens for new in step.scheduled_new_reqs]
        scheduler.update_from_output(step, model_output(scheduler, step))
    [first] = computed
    return first


@pytest.mark.parametrize("window", [1, 16, 17, 60])
def test_a_hit_in_the_prefix_cache_leaves_the_window_to_compute(make_scheduler, window):
    settings = {"refine_window": window}
    scheduler = make_scheduler(worker_cls=WORKER_CLS, settings=settings)
    length = 6 * BLOCK + 4
    whole = 6 * BLOCK
    cut = min(whole, (length - window) // BLOCK * BLOCK)
    assert begun_at(scheduler, opted_in("a", length, budget=2, refine=0.5)) == 0
    assert begun_at(scheduler, opted_in("b", length, budget=2, refine=0.5)) == cut
    assert begun_at(scheduler, opted_in("c", length, budget=2)) == whole  # asks for no refined prompt
    assert begun_at(scheduler, request_by_hand("d", range(length), max_tokens=2)) == whole


def test_without_the_worker_of_ours_the_prefix_cache_is_left_alone(make_scheduler):
    scheduler = make_scheduler()
    assert begun_at(scheduler, opted_in("a", 100, budget=2, refine=0.5)) == 0
    assert begun_at(scheduler, opted_in("b", 100, budget=2, refine=0.5)) == 96
