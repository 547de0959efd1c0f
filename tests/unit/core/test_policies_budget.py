"""What each built-in budget policy grants."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pdd_core.break_even import break_even_budget
from pdd_core.hookspecs import BudgetRequest, CloudLoad
from pdd_core.policies.budget import DefaultBudget, FixedBudget, LoadBudget, PriorityBudget, TenantBudget

IDLE = CloudLoad(running=0, waiting=0, kv_cache_usage=0.0)
FULL = replace(IDLE, pressure=1.0)


def wish(budget=None, *, least=None, **more):
    given_ = {"num_prompt_tokens": 900, "max_tokens": 200, "priority": 0, **more}
    return BudgetRequest("a" * 32, decode_budget=budget, least_budget=least, **given_)


def test_a_default_is_no_less_than_what_the_user_can_do_without_a_wait():
    assert DefaultBudget(64).pdd_decode_budget(wish()) == 64
    assert DefaultBudget(64).pdd_decode_budget(wish(least=90)) == 90
    assert DefaultBudget(64).pdd_decode_budget(wish(10)) is None
    assert FixedBudget(64).pdd_decode_budget() == 64


def test_a_tenant_has_its_own_ceiling_and_all_others_share_one():
    policy = TenantBudget({"batch": 8, "*": 32})
    assert policy.pdd_decode_budget(wish(tenant="batch")) == 8
    assert policy.pdd_decode_budget(wish(tenant="web")) == 32
    assert policy.pdd_decode_budget(wish()) == 32
    assert TenantBudget({"batch": 8}).pdd_decode_budget(wish(tenant="web")) is None


def test_the_less_urgent_a_request_the_lower_its_ceiling():
    policy = PriorityBudget({5: 16, 10: 4})
    assert [policy.pdd_decode_budget(wish(priority=p)) for p in (0, 4, 5, 9, 10, 99)] == [None, None, 16, 16, 4, 4]


@pytest.mark.parametrize(("pressure", "granted"), [(0.0, None), (1 / 3, 44), (2 / 3, 27), (1.0, 10)])
def test_load_lowers_in_equal_steps_to_the_least_without_a_stall(pressure, granted):
    assert LoadBudget(64).pdd_decode_budget(wish(60, least=10), replace(IDLE, pressure=pressure)) == granted


def test_load_leaves_alone_what_it_cannot_know_to_be_harmless():
    assert LoadBudget(64).pdd_decode_budget(wish(60), FULL) is None
    assert LoadBudget(64).pdd_decode_budget(wish(), FULL) is None
    assert LoadBudget(64, floor=8).pdd_decode_budget(wish(60), FULL) is None  # the client has named its wish
    assert LoadBudget(64, floor=8).pdd_decode_budget(wish(), FULL) == 8
    assert LoadBudget(64, floor=8).pdd_decode_budget(wish(least=30), FULL) == 30


@pytest.mark.parametrize(("pressure", "floor"), [(0.0, 64), (1 / 3, 46), (2 / 3, 27), (1.0, 8), (1.5, 8)])
def test_the_floor_of_now_is_what_a_request_gets_that_names_nothing(pressure, floor):
    policy, load = LoadBudget(64, floor=8), replace(IDLE, pressure=pressure)
    assert policy.floor_at(pressure) == floor == (policy.pdd_decode_budget(wish(), load) or 64)
    assert LoadBudget(64).floor_at(pressure) == LoadBudget(64, floor=99).floor_at(pressure) == 64


@given(
    budget=st.none() | st.integers(1, 500),
    least=st.none() | st.integers(1, 500),
    floor=st.none() | st.integers(1, 500),
    pressures=st.lists(st.floats(0, 1), min_size=2, max_size=5).map(sorted),
)
def test_more_pressure_never_means_more_tokens_and_never_fewer_than_the_least(budget, least, floor, pressures):
    if budget is not None and least is not None:
        least = min(least, budget)
    request = wish(budget, least=least)
    full = budget if budget is not None else max(64, least or 0)
    policy = LoadBudget(64, floor)
    granted = [policy.pdd_decode_budget(request, replace(IDLE, pressure=p)) or full for p in pressures]
    assert granted == sorted(granted, reverse=True)
    bottom = least if least is not None else (floor if budget is None and floor is not None else full)
    assert all(min(bottom, full) <= tokens <= full for tokens in granted)
    assert (policy.pdd_decode_budget(request, FULL) or full) == min(bottom, full)


@given(
    prompt=st.integers(1, 20_000),
    rate=st.floats(1, 40),
    faster=st.floats(1.01, 200),
    room=st.floats(1, 3),
    pressure=st.floats(0, 1),
)
def test_a_lowered_budget_still_lasts_until_the_device_is_ready(prompt, rate, faster, room, pressure):
    prefill = rate * faster
    full, least = (break_even_budget(prompt, rate=rate, prefill_tps=prefill, headroom=h) for h in (room, 1.0))
    load = replace(IDLE, pressure=pressure)
    granted = LoadBudget(64).pdd_decode_budget(wish(full, least=least), load) or full
    shown_until = granted / rate
    assert (prompt + granted) / prefill <= shown_until + 1e-6
