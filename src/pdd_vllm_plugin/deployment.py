"""Which deployments the plugin can serve. All others are refused at start, with the setting to change.

What the configuration shows is refused before vLLM launches an engine (`check_before_launch`). The same is checked
again in each process that needs it: vLLM may be started in a way that the first check does not see.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, NoReturn

from pdd_core.errors import UnsupportedDeployment
from pdd_vllm_plugin.config import KEY, PDDConfig
from pdd_vllm_plugin.kv.unsupported import why_unsupported

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger("vllm.pdd")

WORKER_CLS = "pdd_vllm_plugin.worker.PDDWorker"
WORKER_FLAG = f"--worker-cls {WORKER_CLS}"
SCHEDULER_FLAG = "--scheduler-cls pdd_vllm_plugin.scheduler.PDDAsyncScheduler"


def check_before_launch(vllm_config: Any, environ: Mapping[str, str]) -> None:
    """Refuse what can be seen before an engine is launched. A server that does not use the plugin is let pass.

    Args:
        vllm_config: vLLM's ``VllmConfig``.
        environ: the environment of ``vllm serve``.

    Raises:
        UnsupportedDeployment: what `check_api_server` refuses, vLLM's Rust front end, or a setting under which
            attention cannot be captured or, with ``kv`` on, the KV cache cannot be handed over.
        ConfigurationError: a setting under ``additional_config.pdd`` is wrong.
    """
    if not _in_use(vllm_config, environ):
        return
    if environ.get("VLLM_USE_RUST_FRONTEND", "0") not in {"", "0"}:
        refuse("vLLM's Rust front end loads no endpoint plugin: unset VLLM_USE_RUST_FRONTEND")
    check_api_server(vllm_config, None)
    config = PDDConfig.from_vllm(vllm_config)
    if config.kv == "on" and (why := why_unsupported(vllm_config)) is not None:
        refuse(f"additional_config.pdd.kv is on, but {why}")
    if refine_method(config, vllm_config) == "attention":
        from pdd_vllm_plugin.capture.layers import refuse_unsupported

        refuse_unsupported(vllm_config)


def check_api_server(vllm_config: Any, args: Any) -> None:
    """Refuse what this API server process cannot serve.

    Raises:
        UnsupportedDeployment: no tokenizer, another scheduler class, or workers that cannot do what a setting asks
            for.
    """
    if getattr(vllm_config.model_config, "skip_tokenizer_init", False):
        refuse("--skip-tokenizer-init is not supported: devices check the tokenizer before they send ids")
    if not _grants_budgets(vllm_config):
        scheduler = vllm_config.scheduler_config.get_scheduler_cls()
        refuse(f"the scheduler is {scheduler.__name__}, which knows no decode budgets: add {SCHEDULER_FLAG}")
    config = PDDConfig.from_vllm(vllm_config)
    refine_method(config, vllm_config)
    if config.kv == "on" and not gives_cells(config, vllm_config):
        refuse(f"additional_config.pdd.kv is on, but the workers keep no KV caches: add {WORKER_FLAG}")
    if getattr(args, "tokens_only", False):
        refuse("--tokens-only is not supported: handoff state is kept for the OpenAI routes, which it removes")


def engine_ranks(vllm_config: Any) -> range:
    """Return the ranks of the engines that an API server sends its requests to (``ParallelConfig``).

    These are all of them, or those of this machine where something outside balances the load.
    """
    parallel = vllm_config.parallel_config
    first = parallel.data_parallel_index
    local = parallel.local_engines_only
    return range(first, first + (parallel.data_parallel_size_local if local else parallel.data_parallel_size))


def _in_use(vllm_config: Any, environ: Mapping[str, str]) -> bool:
    if getattr(vllm_config.model_config, "runner_type", "generate") != "generate":
        return False  # vLLM passes our endpoint plugin over
    if KEY in environ.get("VLLM_PLUGINS", "").split(","):
        return True
    return vllm_config.scheduler_config.scheduler_cls is not None and _grants_budgets(vllm_config)


def _grants_budgets(vllm_config: Any) -> bool:
    return bool(getattr(vllm_config.scheduler_config.get_scheduler_cls(), "pdd_grants_budgets", False))


def refine_method(config: PDDConfig, vllm_config: Any) -> str:
    """Return the refiner of this server, or ``off``.

    Raises:
        UnsupportedDeployment: ``refine`` is ``attention``, and the workers are vLLM's own.
    """
    worker = vllm_config.parallel_config.worker_cls
    if config.refine == "auto":
        return "attention" if worker == WORKER_CLS else "off"
    if config.refine == "attention" and _is_vllms(worker):
        refuse(f"additional_config.pdd.refine is attention, but the workers cannot capture it: add {WORKER_FLAG}")
    return config.refine


def gives_cells(config: PDDConfig, vllm_config: Any) -> bool:
    """Whether the workers are to keep the KV caches of prompts: as far as `kv` and their class say."""
    worker = vllm_config.parallel_config.worker_cls
    return worker == WORKER_CLS if config.kv == "auto" else config.kv == "on" and not _is_vllms(worker)


def _is_vllms(worker_cls: object) -> bool:
    return str(worker_cls).startswith(("auto", "vllm."))  # any other may be a subclass of ours


def refuse(reason: str) -> NoReturn:
    """Refuse to start.

    Raises:
        UnsupportedDeployment: always.
    """
    # vLLM's own last line is "Process ApiServer_1 died" or a long traceback; this line is the one to look for.
    logger.error("pdd: refusing to start: %s", reason)
    raise UnsupportedDeployment(reason)
