"""vLLM plugin of pdd-device: a decode budget per request, and the state of what the cloud began.

Importing this package imports neither torch nor vLLM: vLLM imports it in every one of its processes.
"""

from __future__ import annotations

import atexit
import logging
import os

logger = logging.getLogger("vllm.pdd")

_registered = False


def register() -> None:
    """Entry point of group ``vllm.general_plugins``; called in each vLLM process, possibly more than once.

    The work is done where vLLM asks for it (`scheduler`, `endpoint`). What only this early call can see is a front
    end that never loads an endpoint plugin.
    """
    global _registered
    if _registered:
        return
    _registered = True
    atexit.register(_remove_shared_folder)
    if os.environ.get("VLLM_USE_RUST_FRONTEND", "0") not in {"", "0"}:
        logger.error(
            "pdd: VLLM_USE_RUST_FRONTEND is set. That front end loads no endpoint plugin: there will be no "
            "handoff state and no check of pdd_* fields. Unset it to use pdd."
        )


def _remove_shared_folder() -> None:
    """Remove what API processes shared whose parent this is: ``vllm serve`` kills them when it is told to end."""
    from pdd_vllm_plugin.compat import server_identity
    from pdd_vllm_plugin.processes.folder import default_base, remove_after

    remove_after(default_base(), server_identity(os.getpid()))
