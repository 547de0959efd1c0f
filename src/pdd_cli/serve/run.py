"""Serving this device on the command line: the model, the settings, and what the user sees."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from pdd_cli.demo_model import DEMO_NAME, device_gguf
from pdd_cli.extras import require
from pdd_cli.leaving import leave
from pdd_cli.output import outlast_output
from pdd_cli.progress import ConsoleProgress
from pdd_cli.urls import openai_base_url

if TYPE_CHECKING:
    from rich.console import Console

    from pdd_core.env import ServeSettings
    from pdd_llamacpp_adapter.runtime.runtime import Runtime


def run_serve(settings: ServeSettings, console: Console) -> None:
    """Serve until Ctrl-C or SIGTERM. The process ends here if a prompt is still being read then.

    Raises:
        ConfigurationError: a setting that cannot work, or an extra that is not installed.
        ModelError: the model file is missing, unreadable or not a GGUF model.
    """
    outlast_output()
    require("device", need="the local server")
    if settings.tracing:
        require("tracing", need="tracing")
    from pdd_llamacpp_adapter.runtime.serving import check_access, serve_device

    check_access(settings)  # before the demo model is prepared
    own = None if settings.gguf == "demo" else Path(settings.gguf)
    gguf = device_gguf(None, progress=ConsoleProgress(console)) if own is None else own
    settings = settings.model_copy(
        update={
            "model_name": settings.model_name or (DEMO_NAME if own is None else None),
            "cloud_url": settings.cloud_url and openai_base_url(settings.cloud_url),
        }
    )
    _log_to_stderr()

    def started(url: str) -> None:
        console.print(f"Loading {gguf.name}; {url}/v1 answers 503 meanwhile", highlight=False, markup=False)
        if settings.ui:
            console.print(f"A page with a chat: {url}/", highlight=False, markup=False)

    def ready(runtime: Runtime) -> None:
        for line in runtime.hardware():
            console.print(line, highlight=False, markup=False)
        prefill, decode = runtime.device_speed()
        console.print(
            f"This device prefills {prefill:.0f} and decodes {decode:.0f} tokens per second", highlight=False
        )
        console.print(f"Ready: model {runtime.model_name}. Ctrl-C ends it.", style="bold green", highlight=False)

    anyio.run(lambda: serve_device(gguf, settings, on_started=started, on_ready=ready))
    leave()


def _log_to_stderr() -> None:
    """Show this project's own log, above all one line per answer; other libraries stay as they are."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    for name in ("pdd_core", "pdd_llamacpp_adapter"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
