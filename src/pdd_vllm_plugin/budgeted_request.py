"""One opted-in request in the scheduler, and the budget that holds for it.

``Request.max_tokens`` is the scheduler's own copy of the client's limit. vLLM's stop check, its trimming of
speculative tokens and its async guard all read it, so the cap is exact and costs nothing per step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pdd_core.hookspecs import BudgetRequest

if TYPE_CHECKING:
    from vllm.v1.request import Request

    from pdd_core.optin import OptIn


SURELY_TOLD = 3
"""Tokens with which a report comes: vLLM keeps the last one of outputs that nobody has read yet."""


@dataclass(slots=True)
class BudgetedRequest:
    """An opted-in request between ``add_request`` and its last output."""

    request: Request
    opt_in: OptIn
    client_max_tokens: int
    engine: int = 0
    """Rank of this scheduler's engine."""
    budget: int | None = None
    set_by: str = ""
    pressure: float = 0.0
    """Pressure under which the budget was decided last."""
    lowered: int = 0
    """How often its budget was lowered after ``add_request``."""
    raised: int = 0
    begun: bool = False
    """A step has computed something of it."""
    to_report: bool = True
    """The API server does not know this budget, or the present pressure."""
    min_tokens_lowered: bool = False

    def budget_request(self) -> BudgetRequest:
        """What the policies are asked."""
        request, opt_in = self.request, self.opt_in
        return BudgetRequest(
            handoff_id=opt_in.handoff_id,
            num_prompt_tokens=request.num_prompt_tokens,
            max_tokens=self.client_max_tokens,
            decode_budget=opt_in.decode_budget,
            priority=request.priority,
            least_budget=opt_in.least_budget,
            tenant=opt_in.tenant,
            num_output_tokens=request.num_output_tokens,
            current_budget=self.budget,
        )

    def set_budget(self, budget: int, set_by: str, pressure: float) -> None:
        """Let `budget` hold from now on. It is never lowered below the tokens made already or in flight."""
        request, before = self.request, self.budget
        self.to_report = self.to_report or pressure != self.pressure
        self.pressure = pressure
        if before is not None:
            if self.begun:
                # In flight is at least one token: a request ends only when it gets one.
                made = request.num_output_tokens + max(1, request.num_output_placeholders)
                budget = max(budget, min(before, made))
            if budget == before or (budget > before and self.min_tokens_lowered):
                # The workers hold the lowered min_tokens: a longer answer could end before the client's.
                return
            self.lowered += budget < before
            self.raised += budget > before
        most = min(budget, self.client_max_tokens)
        if request.sampling_params.min_tokens > most:
            # vLLM up to 0.26 tests min_tokens before max_tokens and would run past the budget. The device
            # knows the client's min_tokens from the handoff state and goes on with it.
            request.sampling_params = request.sampling_params.clone()
            request.sampling_params.min_tokens = most
            self.min_tokens_lowered = True
        # last: whatever raises before leaves the request as it was
        request.max_tokens = most
        self.budget, self.set_by, self.to_report = budget, set_by, True

    def lift(self) -> None:
        """Let the client's limit hold again."""
        self.request.max_tokens = self.client_max_tokens

    @property
    def budget_ended_it(self) -> bool:
        """Was it the budget, not the client's own limit or the context's end, that stopped the request?"""
        budget = self.budget
        return budget is not None and budget < self.client_max_tokens and self.request.num_output_tokens >= budget

    def report(self) -> dict[str, Any]:
        """Return what the API server is told with the next output; see `budget_in_kv_transfer_params`."""
        self.to_report = self.request.num_output_tokens < SURELY_TOLD
        return {
            "engine": self.engine,
            "tokens": self.budget,
            "set_by": self.set_by,
            "pressure": self.pressure,
            "lowered": self.lowered,
            "raised": self.raised,
        }
