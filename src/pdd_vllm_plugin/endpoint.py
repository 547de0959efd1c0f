"""The plugin object that vLLM's API server loads (group ``vllm.endpoint_plugins``).

vllm.plugins.endpoint_plugins.interface.EndpointPlugin, since vLLM 0.26.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pdd_core.kv.geometry import NoKV
from pdd_vllm_plugin.compat import api_process_count, api_process_rank, server_identity
from pdd_vllm_plugin.config import PDDConfig
from pdd_vllm_plugin.deployment import check_api_server
from pdd_vllm_plugin.handoff_routes import make_router
from pdd_vllm_plugin.handoff_service import HandoffService
from pdd_vllm_plugin.kv.handshake import find_shelves
from pdd_vllm_plugin.metrics import CloudMetrics
from pdd_vllm_plugin.middleware import OptInCheck

if TYPE_CHECKING:
    from argparse import Namespace

    from pdd_vllm_plugin.kv.shelves import Shelves
    from pdd_vllm_plugin.processes.other_processes import OtherProcesses

logger = logging.getLogger("vllm.pdd")


class PDDEndpoints:
    """Attaches routes and middleware; completes them when the engine is there."""

    name = "pdd"
    required_tasks = ("generate",)

    def attach_router(self, app: Any) -> None:
        """Attach the routes, and the opt-in check behind vLLM's authentication."""
        self._service = HandoffService(CloudMetrics())
        app.include_router(make_router(self._service))
        app.add_middleware(OptInCheck, service=self._service)

    async def init_state(self, engine_client: Any, state: Any, args: Namespace) -> None:
        """Check the deployment, start recording, and say in one line what is active.

        Raises:
            UnsupportedDeployment: this deployment cannot be served; vLLM ends with it.
            ConfigurationError: a setting under ``additional_config.pdd`` is wrong.
        """
        vllm_config = engine_client.vllm_config
        check_api_server(vllm_config, args)
        config = PDDConfig.from_vllm(vllm_config)
        names = getattr(args, "served_model_name", None) or [vllm_config.model_config.model]
        shelves = await find_shelves(engine_client, config)
        processes = _join(vllm_config)
        info = self._service.start(
            engine_client, config, names[0] if isinstance(names, list) else names, processes, shelves
        )
        if processes is not None:
            await processes.serve(self._service)
        if config.store is not None:
            from pdd_vllm_plugin.shared_store.shared_store import SharedStore  # needs the extra `fleet`

            SharedStore(self._service)
        state.pdd = self._service
        logger.info(
            "pdd %s active on %s: decode budgets (default %d), handoff state at /v1/pdd/handoffs/{id} "
            "(up to %d, %g s), refinement %s, KV handover %s, model %r, tokenizer %s",
            info.plugin_version, info.engine, config.default_decode_budget, info.limits.max_handoffs,
            info.limits.ttl_s, info.refinement, _told(shelves), info.model, info.tokenizer.digest[:12],
        )  # fmt: skip


def _told(shelves: Shelves | NoKV) -> str:
    if isinstance(shelves, NoKV):
        return f"off ({shelves.message})"
    geometry = shelves.geometry
    return f"on ({geometry.key_type} keys, {geometry.value_type} values, {geometry.cell_bytes:,} bytes a token)"


def _join(vllm_config: Any) -> OtherProcesses | None:
    """Join the other API processes of this server, if there are any."""
    count = api_process_count(vllm_config)
    if count == 1:
        return None
    from pdd_vllm_plugin.processes.folder import default_base
    from pdd_vllm_plugin.processes.other_processes import OtherProcesses

    return OtherProcesses.join(default_base(), server_identity(), api_process_rank(vllm_config), count)
