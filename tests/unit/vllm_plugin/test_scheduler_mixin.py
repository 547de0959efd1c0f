"""The budget, over a scheduler that does what vLLM's does with max_tokens and nothing else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scheduler_fakes import Scheduler, request, run, told

from pdd_core.errors import ConfigurationError
from pdd_core.hookspecs import hookimpl
from pdd_vllm_plugin.budgeted_request import SURELY_TOLD
from pdd_vllm_plugin.question_window import with_window


@given(budget=st.integers(1, 40), max_tokens=st.integers(1, 40), per_step=st.integers(1, 5))
def test_a_budget_is_exact_and_only_its_own_end_is_a_handoff(budget, max_tokens, per_step):
    scheduler = Scheduler()
    scheduler.add_request(request(max_tokens=max_tokens, budget=budget))
    tokens, last, reports = run(scheduler, per_step)
    assert tokens == min(budget, max_tokens)
    assert last.finish_reason == "length"
    assert last.stop_reason == ("pdd_handoff" if budget < max_tokens else None)
    assert reports[0] == reports[-1] == told(budget, "client")
    assert len(reports) <= 1 + SURELY_TOLD
    assert scheduler._pdd_budgeted == {}


def test_a_request_without_opt_in_is_untouched():
    scheduler = Scheduler()
    plain = request(opted_in=False)
    params = plain.sampling_params
    scheduler.add_request(plain)
    assert (plain.max_tokens, plain.sampling_params) == (20, params)
    tokens, last, reports = run(scheduler)
    assert (tokens, last.finish_reason, last.stop_reason, reports) == (20, "length", None, [])


def test_an_opt_in_without_budget_gets_the_servers_default():
    scheduler = Scheduler({"pdd": {"default_decode_budget": 6}})
    scheduler.add_request(request())
    tokens, last, reports = run(scheduler)
    assert (tokens, last.stop_reason) == (6, "pdd_handoff")
    assert reports[0] == told(6, "default")


def test_min_tokens_above_the_budget_does_not_outlive_it():
    scheduler = Scheduler()
    made = request(budget=3, min_tokens=8)
    given_params = made.sampling_params
    scheduler.add_request(made)
    assert made.sampling_params.min_tokens == 3
    assert given_params.min_tokens == 8  # the client's own object is not changed


def test_strict_never_ends_the_engine(caplog):
    class Broken:
        @hookimpl
        def pdd_decode_budget(self):
            raise ZeroDivisionError("oops")

    scheduler = Scheduler({"pdd": {"strict": True}})
    scheduler._pdd_decider.policies.manager.register(Broken(), "broken")
    for name in "ab":
        scheduler.add_request(request(name, budget=3))
    assert scheduler._pdd_budgeted["b"].report() == told(3, "client")
    assert caplog.text.count("'broken', pdd_decode_budget: ZeroDivisionError: oops") == 2


def test_an_abort_forgets_the_budget():
    scheduler = Scheduler()
    scheduler.add_request(request(budget=3))
    scheduler.finish_requests(["r"], None)
    assert scheduler._pdd_budgeted == {}


def test_a_session_that_adds_its_id_again_keeps_its_budget():
    scheduler = Scheduler()
    scheduler.add_request(request(budget=3))
    scheduler.add_request(request(budget=9))
    assert scheduler._pdd_budgeted["r"].budget == 3


def test_an_unchecked_wrong_opt_in_runs_as_on_plain_vllm(caplog):
    scheduler = Scheduler()
    scheduler.add_request(request(budget=0))
    assert run(scheduler)[0] == 20
    assert "runs without a budget" in caplog.text


@pytest.mark.parametrize(
    ("change", "window"),
    [
        ({}, 23),
        ({"num_prompt_tokens": 100}, 23),
        ({"num_prompt_tokens": 101}, 0),  # too long to be refined: its prefix hit stays whole
        ({"num_output_tokens": 1}, 0),
    ],
)
def test_the_prefix_cache_is_kept_from_no_more_than_what_is_scored(change, window):
    asked = request()
    asked.sampling_params.extra_args["pdd_refine_ratio"] = 0.5
    asked.sampling_params = with_window(asked.sampling_params, 23)
    vars(asked).update(change)
    scheduler = Scheduler({"pdd": {"refine_max_prompt_tokens": 100}})
    assert scheduler._pdd_tokens_to_compute(asked) == window
    assert scheduler._pdd_tokens_to_compute(request(opted_in=False)) == 0


def test_the_engine_is_told_with_the_budget():
    scheduler = Scheduler(rank=3)
    scheduler.add_request(request(budget=2))
    *_, reports = run(scheduler)
    assert reports == [told(2, "client", engine=3)] * 2


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ttl": 5}, "pdd.ttl is unknown"),
        ({"ttl_s": -1}, "pdd.ttl_s must be above 0"),
        ({"strict": 1}, "pdd.strict"),
        ({"max_handoffs": 1.5}, "pdd.max_handoffs"),
        ({"default_decode_budget": True}, "pdd.default_decode_budget"),
        ({"budget_policy": "dynamic"}, "pdd.budget_policy must be one of load, client, fixed"),
        ({"tenant_budgets": {"a": 0}}, "pdd.tenant_budgets must be an object of budgets above 0"),
        ({"tenant_budgets": [1]}, "pdd.tenant_budgets"),
        ({"priority_budgets": {"low": 3}}, "pdd.priority_budgets must be an object with whole numbers as keys"),
        ({"load_levels": [0.9, 0.8]}, "pdd.load_levels must be increasing"),
        ({"load_levels": []}, "pdd.load_levels"),
        ({"load_hysteresis": 0.8}, "pdd.load_hysteresis must be below the first of load_levels"),
        ({"load_relax_s": 0}, "pdd.load_relax_s must be above 0"),
        ({"load_floor": 0}, "pdd.load_floor"),
        ({"refine_window": 0}, "pdd.refine_window must be above 0"),
        ({"refine_window": 257}, "pdd.refine_window must be at most 256 tokens"),
    ],
)
def test_a_wrong_setting_is_named_at_start(settings, named):
    with pytest.raises(ConfigurationError, match=named):
        Scheduler({"pdd": settings})
