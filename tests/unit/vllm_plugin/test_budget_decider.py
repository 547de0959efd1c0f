"""Who decides a budget where several policies have something to say."""

import pytest

from pdd_core.errors import PolicyError
from pdd_core.hookspecs import BudgetRequest, CloudLoad, hookimpl
from pdd_vllm_plugin.budget_decider import BudgetDecider, budget_policies, decide_budget
from pdd_vllm_plugin.config import PDDConfig

IDLE = CloudLoad(0, 0, 0.0)
PRESSED = CloudLoad(9, 9, 0.9, capacity=9, pressure=1.0)


class Theirs:
    def __init__(self, tokens):
        self.tokens = tokens

    @hookimpl
    def pdd_decode_budget(self):
        return self.tokens


def asked(budget=None, **more):
    given = {"num_prompt_tokens": 5, "max_tokens": 100, "priority": 0, **more}
    return BudgetRequest("a" * 32, decode_budget=budget, **given)


def decided(config, request, load=IDLE, *, theirs=None):
    policies = budget_policies(config)
    if theirs is not None:
        policies.manager.register(Theirs(theirs), "theirs")
    return decide_budget(policies, request, load, config)


def test_a_third_party_may_grant_less_but_never_more_than_the_client_asked_for():
    config = PDDConfig(max_decode_budget=50)
    assert decided(config, asked(10), theirs=3) == (3, "theirs")
    assert decided(config, asked(10), theirs=30) == (10, "client")
    assert decided(config, asked(), theirs=300) == (50, "max_decode_budget")


def test_a_third_party_wins_over_every_built_in_policy():
    config = PDDConfig(tenant_budgets={"*": 2}, priority_budgets={0: 3}, load_floor=1)
    assert decided(config, asked(10, least_budget=1), PRESSED, theirs=9) == (9, "theirs")
    assert decided(config, asked(10, least_budget=1), PRESSED, theirs=None) == (1, "load")


def test_the_built_in_policies_grant_the_clients_wish():
    config = PDDConfig(max_decode_budget=50)
    assert decided(config, asked(10)) == (10, "client")
    assert decided(config, asked(60)) == (50, "client")
    assert decided(config, asked()) == (50, "max_decode_budget")  # the default is above the ceiling


def test_the_least_of_the_built_in_policies_counts():
    config = PDDConfig(tenant_budgets={"batch": 8, "*": 40}, priority_budgets={10: 4})
    assert decided(config, asked(60)) == (40, "tenant")
    assert decided(config, asked(60, tenant="batch")) == (8, "tenant")
    assert decided(config, asked(60, tenant="batch", priority=10)) == (4, "priority")
    assert decided(config, asked(3, tenant="batch", priority=10)) == (3, "client")
    assert decided(config, asked(60, least_budget=20), PRESSED) == (20, "load")
    assert decided(config, asked(60, least_budget=20, tenant="batch"), PRESSED) == (8, "tenant")


def test_the_load_lowers_nothing_where_that_policy_is_not_chosen():
    assert decided(PDDConfig(budget_policy="client"), asked(60, least_budget=20), PRESSED) == (
        60,
        "client",
    )
    assert decided(PDDConfig(budget_policy="fixed"), asked(90, least_budget=20), PRESSED) == (64, "fixed")
    assert decided(PDDConfig(budget_policy="fixed"), asked(9)) == (9, "client")


def test_strict_logs_a_failure_and_asks_the_built_in_ones(caplog):
    decider = BudgetDecider(PDDConfig(strict=True))
    decider.policies.manager.register(Theirs("many"), "theirs")
    with pytest.raises(PolicyError):
        decide_budget(decider.policies, asked(10), IDLE, PDDConfig(strict=True))
    assert decider.decide(asked(10), IDLE) == (10, "client")
    assert "'theirs', pdd_decode_budget: returned 'many', which is not usable" in caplog.text
