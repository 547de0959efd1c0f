"""Built-in decode budgets: the client's wish, else the server's default, never above its ceiling."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdd_core.hookspecs import hookimpl

if TYPE_CHECKING:
    from pdd_core.hookspecs import BudgetRequest


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
    """Grants `tokens` to an opted-in request that named no budget."""

    tokens: int

    @hookimpl(trylast=True)
    def pdd_decode_budget(self) -> int:
        """Return the server's default."""
        return self.tokens
