"""Which deployments the plugin can serve. All others are refused at start, with the setting to change."""

from __future__ import annotations

import logging
from typing import Any

from pdd_core.errors import UnsupportedDeployment
from pdd_vllm_plugin.config import PDDConfig

logger = logging.getLogger("vllm.pdd")

WORKER_CLS = "pdd_vllm_plugin.worker.PDDWorker"
WORKER_FLAG = f"--worker-cls {WORKER_CLS}"
SCHEDULER_FLAG = "--scheduler-cls pdd_vllm_plugin.scheduler.PDDAsyncScheduler"


def refuse_data_parallel(vllm_config: Any) -> None:
    """Refuse data parallel serving: a handoff's state would be known to one of several engines.

    Raises:
        UnsupportedDeployment: ``--data-parallel-size`` is above 1.
    """
    size = vllm_config.parallel_config.data_parallel_size
    if size > 1:
        _refuse(
            f"data parallel serving ({size} engines) is not supported: start one server per engine, without "
            "--data-parallel-size, behind a router that keeps a handoff id on its server"
        )


def check_api_server(vllm_config: Any, args: Any) -> None:
    """Refuse what this API server process cannot serve.

    Raises:
        UnsupportedDeployment: data parallel, no tokenizer, or another scheduler class.
    """
    refuse_data_parallel(vllm_config)
    if getattr(vllm_config.model_config, "skip_tokenizer_init", False):
        _refuse("--skip-tokenizer-init is not supported: devices check the tokenizer before they send ids")
    scheduler = vllm_config.scheduler_config.get_scheduler_cls()
    if not getattr(scheduler, "pdd_grants_budgets", False):
        _refuse(f"the scheduler is {scheduler.__name__}, which knows no decode budgets: add {SCHEDULER_FLAG}")
    refine_method(PDDConfig.from_vllm(vllm_config), vllm_config)
    if getattr(args, "tokens_only", False):
        _refuse("--tokens-only is not supported: handoff state is kept for the OpenAI routes, which it removes")


def refine_method(config: PDDConfig, vllm_config: Any) -> str:
    """Return the refiner of this server, or ``off``.

    Raises:
        UnsupportedDeployment: ``refine`` is ``attention``, and the workers are vLLM's own.
    """
    worker = vllm_config.parallel_config.worker_cls
    if config.refine == "auto":
        return "attention" if worker == WORKER_CLS else "off"
    if config.refine == "attention" and str(worker).startswith(("auto", "vllm.")):
        _refuse(f"additional_config.pdd.refine is attention, but the workers cannot capture it: add {WORKER_FLAG}")
    return config.refine


def _refuse(reason: str) -> None:
    # vLLM's own last line is "Process ApiServer_1 died" or a long traceback; this line is the one to look for.
    logger.error("pdd: refusing to start: %s", reason)
    raise UnsupportedDeployment(reason)
