"""vLLM plugin of pdd-device: a decode budget per request, and the state of what the cloud began.

Importing this package imports neither torch nor vLLM: vLLM imports it in every one of its processes.
"""

from __future__ import annotations

import atexit
import os
from typing import Any

_registered = False


def register() -> None:
    """Entry point of group ``vllm.general_plugins``; called in each vLLM process, possibly more than once.

    The work is done where vLLM asks for it (`scheduler`, `endpoint`). Only this call is early enough to refuse a
    deployment before weights are loaded.
    """
    global _registered
    if _registered:
        return
    _registered = True
    atexit.register(_remove_shared_folder)
    from pdd_vllm_plugin.compat import check_before_launch

    check_before_launch(_check)


def _check(vllm_config: Any) -> None:
    from pdd_vllm_plugin import deployment

    deployment.check_before_launch(vllm_config, os.environ)


def _remove_shared_folder() -> None:
    """Remove what API processes shared whose parent this is: ``vllm serve`` kills them when it is told to end."""
    from pdd_vllm_plugin.compat import server_identity
    from pdd_vllm_plugin.processes.folder import default_base, remove_after

    remove_after(default_base(), server_identity(os.getpid()))
