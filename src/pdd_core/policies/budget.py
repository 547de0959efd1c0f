"""Built-in decode budgets. Each says how many tokens it would grant, or None; the least of them counts."""

from __future__ import annotations

import math
from collections.abc import Mapping  # noqa: TC003 - pluggy reads the annotations of a plugin
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdd_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from pdd_core.hookspecs import BudgetRequest, CloudLoad

OTHERS = "*"
"""The tenant of all that have no entry of their own."""


@dataclass(frozen=True, slots=True)
class ClientBudget:
    """Grants what the client asked for, up to `ceiling`."""

    ceiling: int

    @hookimpl(trylast=True)
    def pdd_decode_budget(self, request: BudgetRequest) -> int | None:
        """Return the client's budget, or None if it named none."""
        return None if request.decode_budget is None else min(request.decode_budget, self.ceiling)


@dataclass(frozen=True, slots=True)
class DefaultBudget:
    """Grants `tokens` to an opted-in request that named no budget; more where its user would wait with that."""

    tokens: int

    @hookimpl(trylast=True)
    def pdd_decode_budget(self, request: BudgetRequest) -> int | None:
        """Return the server's default, or None if the client named a budget."""
        return _wish(request, self.tokens) if request.decode_budget is None else None


@dataclass(frozen=True, slots=True)
class FixedBudget:
    """Grants `tokens` to everyone, whatever is asked for."""

    tokens: int

    @hookimpl(trylast=True)
    def pdd_decode_budget(self) -> int:
        """Return the fixed number."""
        return self.tokens


@dataclass(frozen=True, slots=True, eq=False)  # a mapping has no hash, and pluggy wants one
class TenantBudget:
    """Grants each tenant no more than its own number: `budgets` by name, ``*`` for all others."""

    budgets: Mapping[str, int]

    @hookimpl(trylast=True)
    def pdd_decode_budget(self, request: BudgetRequest) -> int | None:
        """Return the tenant's ceiling, or None if it has none."""
        return self.budgets.get(request.tenant or OTHERS, self.budgets.get(OTHERS))


@dataclass(frozen=True, slots=True, eq=False)  # a mapping has no hash, and pluggy wants one
class PriorityBudget:
    """Grants less to what is less urgent: `budgets` has ceilings by the lowest priority value they apply to."""

    budgets: Mapping[int, int]

    @hookimpl(trylast=True)
    def pdd_decode_budget(self, request: BudgetRequest) -> int | None:
        """Return the least ceiling among those for this priority value and lower ones, or None."""
        return min((most for value, most in self.budgets.items() if request.priority >= value), default=None)


@dataclass(frozen=True, slots=True)
class LoadBudget:
    """Lowers budgets as the pressure rises: in equal steps from the client's wish to the least without a stall.

    Where a client does not say from which budget on its user would wait, nothing is known to be harmless, and its
    wish holds. `floor` is the operator's setting for requests that named neither; None does not lower those.
    """

    default: int
    """What a request gets that names no budget."""
    floor: int | None = None

    @hookimpl(trylast=True)
    def pdd_decode_budget(self, request: BudgetRequest, load: CloudLoad) -> int | None:
        """Return the lowered budget, or None where nothing is to be lowered."""
        least = request.least_budget
        if least is None and request.decode_budget is None:
            least = self.floor
        return _lowered(_wish(request, self.default), least, load.pressure)

    def floor_at(self, pressure: float) -> int:
        """Return what a request gets that names neither a budget nor a least one."""
        return _lowered(self.default, self.floor, pressure) or self.default


def _lowered(wish: int, least: int | None, pressure: float) -> int | None:
    if pressure <= 0 or least is None or least >= wish:
        return None
    return wish - math.floor((wish - least) * min(pressure, 1.0))


def _wish(request: BudgetRequest, default: int) -> int:
    if request.decode_budget is not None:
        return request.decode_budget
    return max(default, request.least_budget or 0)
