import logging
import types
from importlib.metadata import EntryPoint

import pytest

from pdd_core import plugins
from pdd_core.errors import PolicyError
from pdd_core.hookspecs import BudgetRequest, CloudLoad, hookimpl
from pdd_core.plugins import Policies
from pdd_core.policies.budget import ClientBudget, DefaultBudget

LOAD = CloudLoad(running=3, waiting=0, kv_cache_usage=0.5)


def wish(budget):
    return BudgetRequest("h" * 32, num_prompt_tokens=10, max_tokens=100, decode_budget=budget, priority=0)


def ask(policies, budget=None):
    return policies.first_result("pdd_decode_budget", lambda n: n >= 1, request=wish(budget), load=LOAD)


def third_party(function):
    """A module with one hook, as an entry point would load it."""
    module = types.ModuleType("third_party")
    module.pdd_decode_budget = hookimpl(function)
    return module


@pytest.fixture
def install(monkeypatch):
    found = []

    def add(name, plugin):
        entry_point = EntryPoint(name, "nowhere", "pdd")
        load = plugin if isinstance(plugin, types.FunctionType) else lambda _: plugin
        found.append((entry_point, load))

    def entry_points(group):
        assert group == "pdd"
        return [types.SimpleNamespace(name=e.name, load=lambda load=load: load(None)) for e, load in found]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    return add


def builtins():
    return {"client": ClientBudget(50), "default": DefaultBudget(7)}


def test_the_client_is_asked_before_the_default(install):
    assert ask(Policies(builtins())) == (7, "default")
    assert ask(Policies(builtins()), 3) == (3, "client")
    assert ask(Policies(builtins()), 60) == (50, "client")


def test_a_third_party_wins_and_may_pass(install):
    install("eager", third_party(lambda request: 2 if request.decode_budget is None else None))
    policies = Policies(builtins())
    assert ask(policies) == (2, "eager")
    assert ask(policies, 9) == (9, "client")


def test_a_failing_hook_is_named_once_and_the_next_decides(install, caplog):
    def broken(load):
        raise ZeroDivisionError("oops")

    install("broken", third_party(broken))
    policies = Policies(builtins())
    with caplog.at_level(logging.WARNING):
        assert ask(policies) == (7, "default")
        assert ask(policies) == (7, "default")
    assert [r.getMessage() for r in caplog.records] == [
        "policy plugin 'broken' failed in pdd_decode_budget and is passed over: ZeroDivisionError: oops"
    ]


def test_a_useless_result_is_passed_over(install, caplog):
    install("zero", third_party(lambda: 0))
    assert ask(Policies(builtins())) == (7, "default")
    assert "returned 0" in caplog.text


def test_strict_raises_where_a_hook_fails(install):
    install("zero", third_party(lambda: 0))
    with pytest.raises(PolicyError, match="zero"):
        ask(Policies(builtins(), strict=True))


def test_a_misspelt_hook_is_left_out_with_its_name(install, caplog):
    module = types.ModuleType("typo")
    module.pdd_decode_budgett = hookimpl(lambda: 1)
    install("typo", module)
    assert ask(Policies(builtins())) == (7, "default")
    assert "'typo' is left out" in caplog.text
    assert "pdd_decode_budgett" in caplog.text
    with pytest.raises(PolicyError, match="pdd_decode_budgett"):
        Policies(builtins(), strict=True)


def test_a_plugin_that_cannot_be_imported_does_not_stop_the_others(install, caplog):
    def fails(_):
        raise ImportError("no such module")

    install("gone", fails)
    install("fine", third_party(lambda: 5))
    assert ask(Policies(builtins())) == (5, "fine")
    assert "'gone' is left out: ImportError" in caplog.text


def test_an_allow_list_keeps_the_others_out(install):
    install("fine", third_party(lambda: 5))
    assert ask(Policies(builtins(), allow=[])) == (7, "default")
    assert ask(Policies(builtins(), allow=["fine"])) == (5, "fine")


def test_nobody_answering_is_an_error(install):
    with pytest.raises(PolicyError, match="no policy answered"):
        ask(Policies({}))
