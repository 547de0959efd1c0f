"""From settings to a running local server: the model, the cloud and HTTP, in one call."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import ConfigurationError, first_of_ours
from pdd_core.http_client import is_loopback_host
from pdd_core.tracing import Tracing
from pdd_llamacpp_adapter.runtime.runtime import Runtime
from pdd_llamacpp_adapter.server.answers.http_limits import HttpLimits
from pdd_llamacpp_adapter.server.answers.service import Service
from pdd_llamacpp_adapter.server.run import serve
from pdd_llamacpp_adapter.server.streams.kept_streams import StreamLimits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from pdd_core.env import ServeSettings

logger = logging.getLogger(__name__)


async def serve_device(
    gguf: Path,
    settings: ServeSettings,
    *,
    on_started: Callable[[str], object] | None = None,
    on_ready: Callable[[Runtime], object] | None = None,
    signals: bool = True,
) -> None:
    """Serve `gguf` until SIGINT or SIGTERM, or until cancelled, and return when everything has come to rest.

    The port answers at once: 503 while the model loads. A cloud that is not there is no error.

    Args:
        gguf: the device's model file.
        settings: everything else.
        on_started: called with the server's URL once the port answers.
        on_ready: called once answers can be made.
        signals: obey SIGINT and SIGTERM; only in the main thread.

    Raises:
        ConfigurationError: a setting that cannot work, such as a port that is in use, an address that other
            machines reach and no key, or tracing that is not installed.
        DeviceEngineFailed: llama.cpp cannot make a context of this size.
        ModelError: the model file is missing, unreadable or not a GGUF model.
    """
    # what cannot work is found out before a model is loaded
    check_access(settings)
    service = Service(_http_limits(settings), tracing=Tracing() if settings.tracing else None)

    if settings.api_key is None and not is_loopback_host(settings.host):
        logger.warning("there is no key: everyone who reaches the host %s may use this server", settings.host)

    async def load() -> None:
        name = settings.model_name or gguf.stem.lower()
        async with Runtime.running(gguf, settings, model_name=name) as runtime:
            service.runtime = runtime
            if on_ready is not None:
                on_ready(runtime)
            await anyio.sleep_forever()

    try:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(load)
            await serve(
                service,
                host=settings.host,
                port=settings.port,
                grace=settings.grace_s,
                on_started=on_started,
                signals=signals,
            )
            tasks.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        raise first_of_ours(group) from group


def check_access(settings: ServeSettings) -> None:
    """Pass if the server has a key, only this machine reaches it, or `allow_no_key` says that it needs none.

    Raises:
        ConfigurationError: else.
    """
    if settings.api_key is None and not is_loopback_host(settings.host) and not settings.allow_no_key:
        raise ConfigurationError(
            f"other machines may reach the host {settings.host!r}, and no key is set: set api_key_file or "
            "PDD_API_KEY, or set allow_no_key to let everyone use the server"
        )


def _http_limits(settings: ServeSettings) -> HttpLimits:
    key, on_loopback = settings.api_key, is_loopback_host(settings.host)
    # With a cloud, answers that wait for the device begin there at once.
    places = settings.llama.parallel + settings.max_queue
    running = settings.llama.parallel if settings.cloud_url is None else places
    return HttpLimits(
        api_key=None if key is None else key.get_secret_value(),
        allow_hosts=(*settings.allow_hosts, settings.host),
        on_loopback=on_loopback,
        allow_origins=settings.allow_origins,
        ui=settings.ui,
        max_running=running,
        max_queue=places - running,
        max_connections=settings.max_connections,
        streams=StreamLimits(
            count=settings.max_streams, size=settings.stream_mib * 2**20, ttl=settings.stream_ttl_s
        ),
    )
