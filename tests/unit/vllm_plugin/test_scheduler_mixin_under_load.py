"""Budgets of running requests, over a scheduler whose load comes and goes."""

import pytest
from example_count import examples
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from scheduler_fakes import Scheduler, request, told

from pdd_core.hookspecs import hookimpl
from pdd_vllm_plugin import scheduler_mixin


class Clock:
    def __init__(self):
        self.now = 0.0

    def monotonic(self):
        return self.now

    def time(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(scheduler_mixin, "time", made)
    return made


def reports_of(outputs):
    return {one.request_id: one.kv_transfer_params["pdd"] for one in outputs if one.kv_transfer_params}


def test_running_budgets_go_down_with_the_load_and_up_again_after_it(clock):
    scheduler = Scheduler()
    for name, least in (("known", 8), ("unknown", None)):
        scheduler.add_request(request(name, budget=50, least=least, max_tokens=90))
    first = reports_of(scheduler.step())
    assert first == {"known": told(50, "client"), "unknown": told(50, "client")}
    scheduler.kv_cache_manager.usage = 1.0
    scheduler.step()
    assert {name: one.request.max_tokens for name, one in scheduler._pdd_budgeted.items()} == {
        "known": 8,
        "unknown": 50,
    }
    assert reports_of(scheduler.step()) == {
        "known": told(8, "load", pressure=1.0, lowered=1),
        "unknown": told(50, "client", pressure=1.0),
    }
    assert reports_of(scheduler.step()) == {}
    scheduler.kv_cache_manager.usage = 0.0
    clock.now = 1.0
    scheduler._pdd_gauge.observe(scheduler._pdd_load(), clock.now)
    for clock.now in (2.0, 3.0, 4.0):
        outputs = scheduler.step()
    assert scheduler.requests["known"].max_tokens == 50
    assert reports_of(outputs)["known"]["set_by"] == "load"  # of the level before: this step's change is told next
    assert reports_of(scheduler.step())["known"] == told(50, "client", lowered=1, raised=3)


def test_what_is_sent_or_in_flight_is_never_taken_back(clock):
    scheduler = Scheduler()
    for name in ("idle", "busy"):
        scheduler.add_request(request(name, budget=50, least=2, max_tokens=90))
    scheduler.step(10)
    scheduler.requests["busy"].num_output_placeholders = 3  # steps in flight, with draft tokens
    scheduler.kv_cache_manager.usage = 1.0
    scheduler.step(10)
    assert scheduler.requests["busy"].max_tokens == 23
    assert scheduler.requests["idle"].max_tokens == 21  # a request ends only with a token
    scheduler.requests["busy"].num_output_placeholders = 0
    ended = {one.request_id: (len(one.new_token_ids), one.stop_reason) for one in scheduler.step(10)}
    assert ended == {"busy": (3, "pdd_handoff"), "idle": (1, "pdd_handoff")}


def test_a_budget_is_never_raised_by_what_is_in_flight(clock):
    scheduler = Scheduler()
    scheduler.add_request(request(budget=1, least=1))
    scheduler.requests["r"].num_output_placeholders = 2
    scheduler.kv_cache_manager.usage = 1.0
    assert [len(one.new_token_ids) for one in scheduler.step(5)] == [1]


def test_a_request_that_waits_is_asked_about_when_it_begins(clock):
    scheduler = Scheduler(capacity=1)
    scheduler.add_request(request("first", budget=50, least=2))
    scheduler.add_request(request("second", budget=50, least=3))
    asked = scheduler._pdd_budgeted["second"]
    assert asked.budget == 50  # as the load was when it came: one running of one is seen in the next step
    outputs = scheduler.step()
    while "second" not in reports_of(outputs):
        outputs = scheduler.step()
    assert reports_of(outputs)["second"]["tokens"] == 3
    assert (asked.lowered, asked.begun) == (1, True)


def test_a_client_limit_that_ends_the_answer_is_no_handoff_also_under_load(clock):
    scheduler = Scheduler()
    scheduler.add_request(request(budget=50, least=12, max_tokens=5))
    scheduler.step()
    scheduler.kv_cache_manager.usage = 1.0
    while scheduler.requests:
        (last,) = scheduler.step()
    assert (last.finish_reason, last.stop_reason) == ("length", None)


def test_a_lowered_min_tokens_is_not_followed_by_a_higher_budget(clock):
    scheduler = Scheduler()
    scheduler.kv_cache_manager.usage = 1.0
    scheduler.add_request(request("other", budget=50, max_tokens=90))
    scheduler.step()
    scheduler.add_request(request(budget=50, least=4, max_tokens=90, min_tokens=10))
    assert scheduler.requests["r"].sampling_params.min_tokens == 4
    scheduler.kv_cache_manager.usage = 0.0
    for clock.now in (1.0, 2.0, 3.0):
        scheduler.step()
    assert scheduler.requests["r"].max_tokens == 4  # else an end of sequence could come before the client's tenth


def test_a_third_partys_hook_is_asked_again_too(clock):
    seen = []

    class Theirs:
        @hookimpl
        def pdd_decode_budget(self, request, load):
            seen.append((request.num_output_tokens, request.current_budget, load.pressure))
            return 9 if load.pressure else 30

    scheduler = Scheduler()
    scheduler._pdd_decider.policies.manager.register(Theirs(), "theirs")
    scheduler.add_request(request(budget=50, max_tokens=90))
    scheduler.step(3)
    scheduler.step(1)
    assert seen == [(0, None, 0.0)]
    scheduler.kv_cache_manager.usage = 0.85
    scheduler.step(1)
    assert seen[1:] == [(5, 30, pytest.approx(1 / 3))]
    assert scheduler.requests["r"].max_tokens == 9


def test_nothing_is_looked_at_while_nobody_has_opted_in(clock):
    scheduler = Scheduler()
    scheduler._pdd_load = None
    scheduler.add_request(request(opted_in=False))
    while scheduler.requests:
        scheduler.step()


def test_a_pressure_of_yesterday_is_forgotten(clock):
    scheduler = Scheduler()
    scheduler.kv_cache_manager.usage = 1.0
    scheduler.add_request(request("old", budget=1))
    scheduler.step()
    assert not scheduler._pdd_budgeted
    scheduler.kv_cache_manager.usage = 0.1
    scheduler.add_request(request("new", budget=50, least=2))
    assert scheduler._pdd_budgeted["new"].budget == 50


class AnyLoad(RuleBasedStateMachine):
    """Whatever comes, goes and waits: every budget stays within its bounds, and every end is told as it was."""

    def __init__(self):
        super().__init__()
        self.clock = Clock()
        self._real, scheduler_mixin.time = scheduler_mixin.time, self.clock
        self.scheduler = Scheduler({"pdd": {"tenant_budgets": {"small": 7}}}, capacity=4)
        self.asked = {}
        self.made = {}
        self.level_changes = 0
        self.level = 0

    def teardown(self):
        scheduler_mixin.time = self._real

    @rule(
        opted_in=st.booleans(),
        budget=st.none() | st.integers(1, 40),
        least=st.none() | st.integers(1, 40),
        tenant=st.sampled_from([None, "small"]),
        max_tokens=st.integers(1, 60),
    )
    def arrive(self, opted_in, budget, least, tenant, max_tokens):
        if budget is not None and least is not None:
            least = min(least, budget)
        name = f"r{len(self.asked)}"
        wish = budget if budget is not None else max(64, least or 0)
        most = min(wish, 7) if tenant else wish
        self.asked[name] = (opted_in, most, min(most, least) if least is not None else most, max_tokens)
        self.made[name] = 0
        made = request(
            name, budget=budget, least=least, tenant=tenant, max_tokens=max_tokens, opted_in=opted_in
        ) if opted_in else request(name, max_tokens=max_tokens, opted_in=False)  # fmt: skip
        made.arrival_time = self.clock.now
        self.scheduler.add_request(made)

    @rule(percent=st.integers(0, 110))
    def memory(self, percent):
        self.scheduler.kv_cache_manager.usage = percent / 100

    @rule(seconds=st.floats(0.01, 3.0))
    def wait(self, seconds):
        self.clock.now += seconds

    @rule(pick=st.integers(0, 10**6))
    @precondition(lambda self: self.scheduler.requests)
    def abort(self, pick):
        name = sorted(self.scheduler.requests)[pick % len(self.scheduler.requests)]
        gone = self.scheduler.requests[name]
        self.scheduler.finish_requests([name], None)
        for line in (self.scheduler.running, self.scheduler.waiting):
            if gone in line:
                line.remove(gone)

    @rule(tokens=st.integers(1, 3))
    def step(self, tokens):
        told_before = {name: one.to_report for name, one in self.scheduler._pdd_budgeted.items()}
        for one in self.scheduler.step(tokens):
            opted_in, most, least, limit = self.asked[one.request_id]
            self.made[one.request_id] += len(one.new_token_ids)
            made = self.made[one.request_id]
            report = (one.kv_transfer_params or {}).get("pdd")
            if not opted_in:
                assert report is None
                assert made < limit or one.finish_reason == "length"
                continue
            assert (report is not None) == (told_before[one.request_id] or one.finish_reason is not None)
            assert made <= most
            if one.finish_reason is not None:
                assert made >= min(least, limit)
                handed_off = made < limit
                assert one.stop_reason == ("pdd_handoff" if handed_off else None)
                assert least <= report["tokens"] <= most
                assert not handed_off or report["tokens"] == made

    @invariant()
    def within_bounds(self):
        for name, one in self.scheduler._pdd_budgeted.items():
            _, most, least, limit = self.asked[name]
            assert least <= one.budget <= most
            assert one.request.max_tokens == min(one.budget, limit)
            assert one.request.max_tokens > one.request.num_output_tokens

    @invariant()
    def nobody_is_forgotten(self):
        held = {name for name in self.scheduler.requests if self.asked[name][0]}
        assert set(self.scheduler._pdd_budgeted) == held


AnyLoad.TestCase.settings = examples(60, stateful_step_count=40)
TestAnyLoad = AnyLoad.TestCase
