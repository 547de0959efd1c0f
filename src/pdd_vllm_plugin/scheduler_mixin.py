"""The decode budget in vLLM's scheduler: set on admission and when the load changes, reported at the end."""

from __future__ import annotations

import logging
import time
from typing import TYPE_CHECKING, Any

from pdd_core.errors import InvalidOptIn
from pdd_core.hookspecs import CloudLoad
from pdd_core.optin import REFINE_RATIO, STOP_REASON, OptIn, parse_opt_in
from pdd_core.policies.pressure import PressureGauge
from pdd_vllm_plugin.budget_decider import BudgetDecider
from pdd_vllm_plugin.budget_in_kv_transfer_params import write_budget_report
from pdd_vllm_plugin.budgeted_request import BudgetedRequest
from pdd_vllm_plugin.compat import keep_from_prefix_cache
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.deployment import refine_method
from pdd_vllm_plugin.failsafe import Failsafe
from pdd_vllm_plugin.question_window import window_of

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request, RequestStatus

logger = logging.getLogger("vllm.pdd")


class BudgetMixin:
    """Adds decode budgets to a vLLM scheduler. Overrides methods of ``SchedulerInterface`` only.

    While nobody has opted in, a step costs one look into an empty dict. While somebody has, it costs a look at the
    load; when that reaches another level of pressure, the policies are asked again about each request that has
    begun. One that has not is asked about when it begins.
    """

    pdd_grants_budgets = True
    """By this the API server knows that ``--scheduler-cls`` names one of ours, or a subclass."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.vllm_config: Any
        self._pdd_config = PDDConfig.from_vllm(self.vllm_config)
        self._pdd_decider = BudgetDecider(self._pdd_config)
        self._pdd_gauge = PressureGauge(self._pdd_config.pressure)
        self._pdd_budgeted: dict[str, BudgetedRequest] = {}
        self._pdd_admission = Failsafe("some requests run without a decode budget, as on plain vLLM")
        self._pdd_failsafe = Failsafe("decode budgets are off from here on", then=self._pdd_lift_budgets)
        if refine_method(self._pdd_config, self.vllm_config) == "attention":
            keep_from_prefix_cache(self.kv_cache_manager, self._pdd_tokens_to_compute)  # type: ignore[attr-defined]
        described = self._pdd_decider.policies.describe()
        logger.info("pdd: %s grants decode budgets (%s)", type(self).__name__, described)

    def add_request(self, request: Request) -> None:
        """Add `request`, with its budget if it has opted in."""
        budgeted = None
        with self._pdd_admission:
            budgeted = self._pdd_budget_for(request)
        super().add_request(request)  # type: ignore[misc]
        if budgeted is not None:
            self._pdd_budgeted[request.request_id] = budgeted

    def _pdd_budget_for(self, request: Request) -> BudgetedRequest | None:
        # A streaming-input session adds its id again: the budget of its first part holds.
        new = request.request_id not in self.requests  # type: ignore[attr-defined]
        opt_in = _opt_in_of(request) if new and not self._pdd_failsafe.failed else None
        if opt_in is None:
            return None
        engine = self.vllm_config.parallel_config.data_parallel_index
        budgeted = BudgetedRequest(request, opt_in, request.max_tokens, engine)
        if not self._pdd_budgeted:  # nobody has looked at the load since the last one left
            self._pdd_gauge.restart(self._pdd_load())
        self._pdd_decide_budget(budgeted, self._pdd_load())
        return budgeted

    def _pdd_decide_budget(self, budgeted: BudgetedRequest, load: CloudLoad) -> None:
        budget, set_by = self._pdd_decider.decide(budgeted.budget_request(), load)
        budgeted.set_budget(budget, set_by, load.pressure)

    def _pdd_load(self) -> CloudLoad:
        running, waiting = self.get_request_counts()  # type: ignore[attr-defined]
        line = self.waiting  # type: ignore[attr-defined]
        return CloudLoad(
            running=running,
            waiting=waiting,
            kv_cache_usage=self.kv_cache_manager.usage,  # type: ignore[attr-defined]
            capacity=self.vllm_config.scheduler_config.max_num_seqs,
            waited_s=max(0.0, time.time() - line.peek_request().arrival_time) if line else 0.0,
            pressure=self._pdd_gauge.pressure,
        )

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        """Process a step; mark the outputs that a budget has ended; then look whether the load has changed."""
        if self._pdd_budgeted:
            with self._pdd_failsafe:
                self._pdd_note_begun(scheduler_output)
        outputs: dict[int, EngineCoreOutputs] = super().update_from_output(  # type: ignore[misc]
            scheduler_output, model_runner_output
        )
        if self._pdd_budgeted:
            with self._pdd_failsafe:
                self._pdd_write_reports(outputs)
                self._pdd_follow_load()
        return outputs

    def _pdd_write_reports(self, outputs: dict[int, EngineCoreOutputs]) -> None:
        ours = [
            (output, budgeted)
            for of_client in outputs.values()
            for output in of_client.outputs
            if (budgeted := self._pdd_budgeted.get(output.request_id)) is not None
        ]
        for output, budgeted in ours:
            with self._pdd_failsafe:  # one that fails does not keep the others from being marked
                self._pdd_write_report(output, budgeted)

    def _pdd_follow_load(self) -> None:
        if self._pdd_gauge.observe(self._pdd_load(), time.monotonic()):
            load = self._pdd_load()
            for budgeted in self._pdd_budgeted.values():
                if budgeted.begun:
                    self._pdd_decide_budget(budgeted, load)

    def _pdd_lift_budgets(self) -> None:
        """Give every request its client's limit back: an answer that a budget ends unmarked would seem whole."""
        for budgeted in self._pdd_budgeted.values():
            budgeted.lift()
        self._pdd_budgeted.clear()

    def _pdd_note_begun(self, scheduler_output: SchedulerOutput) -> None:
        for new in scheduler_output.scheduled_new_reqs:
            budgeted = self._pdd_budgeted.get(new.req_id)
            if budgeted is not None and not budgeted.begun:
                budgeted.begun = True
                if budgeted.pressure != self._pdd_gauge.pressure:
                    self._pdd_decide_budget(budgeted, self._pdd_load())

    def _pdd_write_report(self, output: EngineCoreOutput, budgeted: BudgetedRequest) -> None:
        if output.finish_reason is not None:
            self._pdd_budgeted.pop(output.request_id, None)
            if str(output.finish_reason) == "length" and budgeted.budget_ended_it:
                output.stop_reason = STOP_REASON
        elif not budgeted.to_report:
            return
        write_budget_report(output, budgeted.report())

    def finish_requests(self, request_ids: Any, finished_status: RequestStatus) -> list[Request]:
        """Finish requests from outside (abort, disconnect), and forget their budgets."""
        finished: list[Request] = super().finish_requests(request_ids, finished_status)  # type: ignore[misc]
        with self._pdd_failsafe:
            for request in finished:
                self._pdd_budgeted.pop(request.request_id, None)
        return finished

    def _pdd_tokens_to_compute(self, request: Request) -> int:
        """Return how many prompt tokens have to be computed, so that their attention can be captured."""
        params = request.sampling_params
        if params is None or not params.extra_args or REFINE_RATIO not in params.extra_args:
            return 0
        if request.num_output_tokens or request.num_prompt_tokens > self._pdd_config.refine_max_prompt_tokens:
            return 0
        return window_of(params.extra_args, most=self._pdd_config.refine_window)


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
