"""How the API server learns a request's decode budget: by ``kv_transfer_params`` of the request's outputs.

The budget is decided in the engine's process and read in the API server's. vLLM has no channel for a plugin
between them, and the API server must not wait for the scheduler. So the budget goes with the outputs:

1. `BudgetMixin.update_from_output`, in the engine's process, writes the report (`BudgetedRequest.report`) under
   the key ``pdd`` on the request's ``EngineCoreOutput``: on the first ones, on the last one, and on the next one
   after the budget or the pressure has changed. A KV connector's own fields stay beside it.
2. vLLM sends ``EngineCoreOutput`` to the API server's process. ``OutputProcessor.process_outputs`` passes its
   ``kv_transfer_params`` on unchanged (vllm.v1.engine.output_processor); they become
   ``RequestOutput.kv_transfer_params`` (vllm.outputs).
3. `GenerateRecorder` takes the report out of the ``RequestOutput`` before the OpenAI route sees it. The route
   would copy ``kv_transfer_params`` into the client's answer, which is to look as it does without the plugin.

``RequestOutput.add`` merges outputs that nobody has read yet, and keeps the last one's ``kv_transfer_params``. A
report can be lost by that, so the first one is repeated; the one on the request's last output is never lost. The
report also names the engine, which the API server cannot see where there are several.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_vllm_plugin.config import KEY

if TYPE_CHECKING:
    from collections.abc import Mapping

    from vllm.outputs import RequestOutput
    from vllm.v1.engine import EngineCoreOutput


def write_budget_report(output: EngineCoreOutput, report: Mapping[str, Any]) -> None:
    """Send `report` along with `output`, from the scheduler's side."""
    output.kv_transfer_params = {**(output.kv_transfer_params or {}), KEY: report}


def take_budget_report(output: RequestOutput) -> Mapping[str, Any] | None:
    """Return the report that came with `output`, and remove it from there; None if none came."""
    params = output.kv_transfer_params or {}
    report: Mapping[str, Any] | None = params.get(KEY)
    if report is not None:
        rest = {key: value for key, value in params.items() if key != KEY}
        output.kv_transfer_params = rest or None
    return report
