"""Decides decode budgets: a third party's policy first, else the least that a built-in policy grants."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from pdd_core.env import Env
from pdd_core.errors import PolicyError
from pdd_core.plugins import Policies
from pdd_core.policies.budget import (
    ClientBudget,
    DefaultBudget,
    FixedBudget,
    LoadBudget,
    PriorityBudget,
    TenantBudget,
)

if TYPE_CHECKING:
    from pdd_core.hookspecs import BudgetRequest, CloudLoad
    from pdd_vllm_plugin.config import PDDConfig

logger = logging.getLogger("vllm.pdd")


class BudgetDecider:
    """The budget policies of one server.

    Raises:
        PolicyError: `config.strict`, and a policy plugin cannot be loaded.
    """

    def __init__(self, config: PDDConfig) -> None:
        self._config = config
        self.policies = budget_policies(config)
        self._built_in = budget_policies(config, third_parties=False)

    def decide(self, request: BudgetRequest, load: CloudLoad) -> tuple[int, str]:
        """Return the budget of a request and who set it. Never raises."""
        try:
            return decide_budget(self.policies, request, load, self._config)
        except PolicyError as error:
            # `strict`. An exception here would end the engine, and with it everybody's requests.
            logger.error("pdd: %s; the built-in policies decide", error)  # noqa: TRY400 - its cause is in it
            return decide_budget(self._built_in, request, load, self._config)


def budget_policies(config: PDDConfig, *, third_parties: bool = True) -> Policies:
    """The budget policies of this server: third parties', then those that its settings switch on."""
    default = config.default_decode_budget
    built_in: dict[str, object] = (
        {"fixed": FixedBudget(default)}
        if config.budget_policy == "fixed"
        else {"client": ClientBudget(config.max_decode_budget), "default": DefaultBudget(default)}
    )
    if config.tenant_budgets:
        built_in["tenant"] = TenantBudget(config.tenant_budgets)
    if config.priority_budgets:
        built_in["priority"] = PriorityBudget(config.priority_budgets)
    if config.budget_policy == "load":
        built_in["load"] = LoadBudget(default, config.load_floor)
    allow = Env().allowed_policies() if third_parties else ()
    return Policies(built_in, allow=allow, strict=config.strict)


def decide_budget(
    policies: Policies, request: BudgetRequest, load: CloudLoad, config: PDDConfig
) -> tuple[int, str]:
    """Return the budget of a request and who set it.

    The first third party that answers decides; if none does, the least that a built-in policy grants. No policy
    can grant more than the client asked for: its device has planned with that number.

    Raises:
        PolicyError: ``strict``, and a policy failed.
    """
    budget, set_by = _first_or_least(policies, request, load)
    if request.decode_budget is not None and budget > request.decode_budget:
        budget, set_by = request.decode_budget, "client"
    if budget > config.max_decode_budget:
        budget, set_by = config.max_decode_budget, "max_decode_budget"
    return budget, set_by


def _first_or_least(policies: Policies, request: BudgetRequest, load: CloudLoad) -> tuple[int, str]:
    least: tuple[int, str] | None = None
    for budget, name in policies.answers("pdd_decode_budget", _is_budget, request=request, load=load):
        if not policies.is_built_in(name):
            if least is None:
                return budget, name
        elif least is None or budget < least[0]:
            least = budget, name
    if least is None:
        raise PolicyError("no policy answered pdd_decode_budget")
    return least


def _is_budget(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
