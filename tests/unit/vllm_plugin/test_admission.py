"""The budget, over a scheduler that does what vLLM's does with max_tokens and nothing else."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.errors import ConfigurationError, UnsupportedDeployment
from pdd_core.hookspecs import BudgetRequest, CloudLoad, hookimpl
from pdd_vllm_plugin.admission import BudgetMixin, budget_policies, decide_budget
from pdd_vllm_plugin.config import PDDConfig

ID = "a" * 32


class FinishReason(str):
    """vLLM's enum prints as its word."""


class FakeScheduler:
    """Keeps requests; each step gives every request `tokens_per_step` tokens, trimmed at max_tokens."""

    def __init__(self, additional_config=None, data_parallel_size=1):
        self.vllm_config = SimpleNamespace(
            additional_config=additional_config or {},
            parallel_config=SimpleNamespace(
                data_parallel_size=data_parallel_size, worker_cls="vllm.v1.worker.gpu_worker.Worker"
            ),
        )
        self.requests, self.running, self.waiting = {}, [], []
        self.kv_cache_manager = SimpleNamespace(usage=0.0)

    def add_request(self, request):
        self.requests[request.request_id] = request

    def update_from_output(self, tokens_per_step, model_runner_output):
        outputs = []
        for request in list(self.requests.values()):
            room = request.max_tokens - request.num_output_tokens
            new = min(tokens_per_step, room)
            request.num_output_tokens += new
            done = request.num_output_tokens >= request.max_tokens
            outputs.append(
                SimpleNamespace(
                    request_id=request.request_id, new_token_ids=[1] * new, stop_reason=None,
                    kv_transfer_params=None, finish_reason=FinishReason("length") if done else None,
                )
            )  # fmt: skip
            if done:
                del self.requests[request.request_id]
        return {0: SimpleNamespace(outputs=outputs)}

    def finish_requests(self, request_ids, finished_status):
        return [self.requests.pop(i) for i in request_ids if i in self.requests]


class Scheduler(BudgetMixin, FakeScheduler):
    pass


class Params(SimpleNamespace):
    def clone(self):
        return Params(**vars(self))


def request(name="r", *, max_tokens=20, budget=None, opted_in=True, min_tokens=0):
    extra = {"pdd_handoff": ID} if opted_in else {}
    if budget is not None:
        extra["pdd_decode_budget"] = budget
    return SimpleNamespace(
        request_id=name, max_tokens=max_tokens, num_prompt_tokens=5, num_output_tokens=0, priority=0,
        sampling_params=Params(extra_args=extra or None, min_tokens=min_tokens),
    )  # fmt: skip


def run(scheduler, tokens_per_step=1):
    """Step until nothing runs; returns (tokens, last output, reports)."""
    tokens, reports = 0, []
    while scheduler.requests:
        for output in scheduler.update_from_output(tokens_per_step, None)[0].outputs:
            tokens += len(output.new_token_ids)
            if output.kv_transfer_params:
                reports.append(output.kv_transfer_params["pdd"])
            last = output
    return tokens, last, reports


@given(budget=st.integers(1, 40), max_tokens=st.integers(1, 40), per_step=st.integers(1, 5))
def test_a_budget_is_exact_and_only_its_own_end_is_a_handoff(budget, max_tokens, per_step):
    scheduler = Scheduler()
    scheduler.add_request(request(max_tokens=max_tokens, budget=budget))
    tokens, last, reports = run(scheduler, per_step)
    assert tokens == min(budget, max_tokens)
    assert last.finish_reason == "length"
    assert last.stop_reason == ("pdd_handoff" if budget < max_tokens else None)
    assert reports[0] == reports[-1] == {"tokens": budget, "set_by": "client"}
    assert len(reports) <= 2
    assert scheduler._pdd_admitted == {}


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
    assert reports[0] == {"tokens": 6, "set_by": "default"}


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
    scheduler._pdd_policies.manager.register(Broken(), "broken")
    for name in "ab":
        scheduler.add_request(request(name, budget=3))
    assert scheduler._pdd_admitted["b"].report == {"tokens": 3, "set_by": "client"}
    assert caplog.text.count("'broken', pdd_decode_budget: ZeroDivisionError: oops") == 2


def test_an_abort_forgets_the_budget():
    scheduler = Scheduler()
    scheduler.add_request(request(budget=3))
    scheduler.finish_requests(["r"], None)
    assert scheduler._pdd_admitted == {}


def test_a_session_that_adds_its_id_again_keeps_its_budget():
    scheduler = Scheduler()
    scheduler.add_request(request(budget=3))
    scheduler.add_request(request(budget=9))
    assert scheduler._pdd_admitted["r"].budget == 3


def test_an_unchecked_wrong_opt_in_runs_as_on_plain_vllm(caplog):
    scheduler = Scheduler()
    scheduler.add_request(request(budget=0))
    assert run(scheduler)[0] == 20
    assert "runs without a budget" in caplog.text


def test_data_parallel_is_refused_by_name(caplog):
    with pytest.raises(UnsupportedDeployment, match="--data-parallel-size"):
        Scheduler(data_parallel_size=2)
    assert "refusing to start" in caplog.text


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ttl": 5}, "pdd.ttl is unknown"),
        ({"ttl_s": -1}, "pdd.ttl_s must be above 0"),
        ({"strict": 1}, "pdd.strict"),
        ({"max_handoffs": 1.5}, "pdd.max_handoffs"),
        ({"default_decode_budget": True}, "pdd.default_decode_budget"),
    ],
)
def test_a_wrong_setting_is_named_at_start(settings, named):
    with pytest.raises(ConfigurationError, match=named):
        Scheduler({"pdd": settings})


class Fixed:
    def __init__(self, value):
        self.value = value

    def first_result(self, *args, **kwargs):
        return self.value, "theirs"


def wish(budget):
    return BudgetRequest(ID, num_prompt_tokens=5, max_tokens=100, decode_budget=budget, priority=0)


LOAD = CloudLoad(0, 0, 0.0)


def test_a_policy_may_grant_less_but_never_more_than_the_client_asked_for():
    config = PDDConfig(max_decode_budget=50)
    assert decide_budget(Fixed(3), wish(10), LOAD, config) == (3, "theirs")
    assert decide_budget(Fixed(30), wish(10), LOAD, config) == (10, "client")
    assert decide_budget(Fixed(300), wish(None), LOAD, config) == (50, "max_decode_budget")


def test_the_built_in_policies_grant_the_clients_wish():
    config = PDDConfig(max_decode_budget=50)
    assert decide_budget(budget_policies(config), wish(10), LOAD, config) == (10, "client")
    assert decide_budget(budget_policies(config), wish(60), LOAD, config)[0] == 50
