"""The decode budget: lowers ``Request.max_tokens`` on admission, and says so when the budget was what ended it.

``Request.max_tokens`` is the scheduler's own copy of the client's limit. vLLM's stop check, its trimming of
speculative tokens and its async guard all read it, so the cap is exact and costs nothing per step.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pdd_core.env import Env
from pdd_core.errors import InvalidOptIn, PolicyError
from pdd_core.hookspecs import BudgetRequest, CloudLoad
from pdd_core.optin import REFINE_RATIO, STOP_REASON, OptIn, parse_opt_in
from pdd_core.plugins import Policies
from pdd_core.policies.budget import ClientBudget, DefaultBudget
from pdd_vllm_plugin.compat import keep_from_prefix_cache
from pdd_vllm_plugin.config import KEY, PDDConfig
from pdd_vllm_plugin.deployment import refine_method, refuse_data_parallel

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus

logger = logging.getLogger("vllm.pdd")


@dataclass(slots=True)
class Admitted:
    """An opted-in request between its admission and its last output."""

    request: Request
    client_max_tokens: int
    budget: int
    report: dict[str, Any]
    """``{"tokens": budget, "set_by": name}``, sent to the API process with the first and the last output."""
    reported: bool = False

    @property
    def budget_ended_it(self) -> bool:
        """Was it the budget, not the client's own limit or the context's end, that stopped the request?"""
        return self.budget < self.client_max_tokens and self.request.num_output_tokens >= self.budget


class BudgetMixin:
    """Adds decode budgets to a vLLM scheduler. Overrides methods of ``SchedulerInterface`` only."""

    pdd_grants_budgets = True
    """By this the API server knows that ``--scheduler-cls`` names one of ours, or a subclass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.vllm_config: Any
        refuse_data_parallel(self.vllm_config)
        self._pdd_config = PDDConfig.from_vllm(self.vllm_config)
        self._pdd_policies = budget_policies(self._pdd_config)
        self._pdd_built_in = budget_policies(self._pdd_config, third_parties=False)
        self._pdd_admitted: dict[str, Admitted] = {}
        if refine_method(self._pdd_config, self.vllm_config) == "attention":
            keep_from_prefix_cache(self.kv_cache_manager, self._pdd_window)  # type: ignore[attr-defined]
        logger.info("pdd: %s grants decode budgets (%s)", type(self).__name__, self._pdd_policies.describe())

    def add_request(self, request: Request) -> None:
        """Admit `request`, with its budget if it has opted in."""
        # A streaming-input session adds its id again: the budget of its first part stands.
        new = request.request_id not in self.requests  # type: ignore[attr-defined]
        opt_in = _opt_in_of(request) if new else None
        admitted = self._pdd_admit(request, opt_in) if opt_in is not None else None
        super().add_request(request)  # type: ignore[misc]
        if admitted is not None:
            self._pdd_admitted[request.request_id] = admitted

    def _pdd_admit(self, request: Request, opt_in: OptIn) -> Admitted:
        wish = BudgetRequest(
            handoff_id=opt_in.handoff_id,
            num_prompt_tokens=request.num_prompt_tokens,
            max_tokens=request.max_tokens,
            decode_budget=opt_in.decode_budget,
            priority=request.priority,
        )
        budget, set_by = self._pdd_decide(wish)
        admitted = Admitted(request, request.max_tokens, budget, {"tokens": budget, "set_by": set_by})
        if budget < request.max_tokens:
            request.max_tokens = budget
            params = request.sampling_params
            if params.min_tokens > budget:
                # vLLM up to 0.26 tests min_tokens before max_tokens and would run past the budget. The device
                # knows the client's min_tokens from the handoff state and goes on with it.
                request.sampling_params = params.clone()
                request.sampling_params.min_tokens = budget
        return admitted

    def _pdd_decide(self, wish: BudgetRequest) -> tuple[int, str]:
        load = self._pdd_load()
        try:
            return decide_budget(self._pdd_policies, wish, load, self._pdd_config)
        except PolicyError as error:
            # `strict`. An exception here would end the engine, and with it everybody's requests.
            logger.error("pdd: %s; the built-in policies decide", error)  # noqa: TRY400 - its cause is in it
            return decide_budget(self._pdd_built_in, wish, load, self._pdd_config)

    def _pdd_window(self, request: Request) -> int:
        """Return how many prompt tokens have to be computed, so that their attention can be captured."""
        params = request.sampling_params
        if params is None or not params.extra_args or REFINE_RATIO not in params.extra_args:
            return 0
        return 0 if request.num_output_tokens else self._pdd_config.refine_window

    def _pdd_load(self) -> CloudLoad:
        return CloudLoad(
            running=len(self.running),  # type: ignore[attr-defined]
            waiting=len(self.waiting),  # type: ignore[attr-defined]
            kv_cache_usage=self.kv_cache_manager.usage,  # type: ignore[attr-defined]
        )

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Process a step; mark the outputs that a budget has ended."""
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        if self._pdd_admitted:
            for of_client in outputs.values():
                for output in of_client.outputs:
                    admitted = self._pdd_admitted.get(output.request_id)
                    if admitted is not None:
                        self._pdd_report(output, admitted)
        return outputs

    def _pdd_report(self, output: EngineCoreOutput, admitted: Admitted) -> None:
        if output.finish_reason is not None:
            del self._pdd_admitted[output.request_id]
            if str(output.finish_reason) == "length" and admitted.budget_ended_it:
                output.stop_reason = STOP_REASON
        elif admitted.reported:
            return
        admitted.reported = True
        output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: admitted.report}

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> list[Request]:
        """Finish requests from outside (abort, disconnect), and forget their budgets."""
        finished: list[Request] = super().finish_requests(request_ids, finished_status)  # type: ignore[misc]
        for request in finished:
            self._pdd_admitted.pop(request.request_id, None)
        return finished


def budget_policies(config: PDDConfig, *, third_parties: bool = True) -> Policies:
    """The budget policies of this server: third parties', then the client's wish, then the default."""
    return Policies(
        {"client": ClientBudget(config.max_decode_budget), "default": DefaultBudget(config.default_decode_budget)},
        allow=Env().allowed_policies() if third_parties else (),
        strict=config.strict,
    )


def decide_budget(policies: Policies, wish: BudgetRequest, load: CloudLoad, config: PDDConfig) -> tuple[int, str]:
    """Return the budget of a request and who set it.

    A policy can grant less than the client asked for, never more: the client's device has planned with its number.
    """
    budget, set_by = policies.first_result("pdd_decode_budget", _is_budget, request=wish, load=load)
    if wish.decode_budget is not None and budget > wish.decode_budget:
        budget, set_by = wish.decode_budget, "client"
    if budget > config.max_decode_budget:
        budget, set_by = config.max_decode_budget, "max_decode_budget"
    return budget, set_by


def _is_budget(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _opt_in_of(request: Request) -> OptIn | None:
    params = request.sampling_params
    if params is None or not params.extra_args:
        return None
    try:
        return parse_opt_in(params.extra_args)
    except InvalidOptIn as error:
        # The endpoint plugin has refused it already, unless it is not loaded: then there is no state to read and
        # nothing to hand off, and the request runs as on plain vLLM.
        logger.warning("pdd: request %s runs without a budget: %s", request.request_id, error)
        return None
