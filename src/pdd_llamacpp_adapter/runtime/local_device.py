"""The device as a Python object: OpenAI's own client, and the local server it talks to, in one process.

The server runs on a thread of its own, on a free loopback port, with a key that nobody else knows. So this is the
same code as ``pdd-device serve``, and everything that OpenAI's client can do.
"""

from __future__ import annotations

import secrets
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio
from anyio.from_thread import start_blocking_portal

from pdd_core.env import ServeSettings
from pdd_core.errors import ConfigurationError
from pdd_core.http_client import new_async_client, new_client
from pdd_llamacpp_adapter.runtime.serving import serve_device

if TYPE_CHECKING:
    import os

    from anyio.abc import TaskStatus

_FIXED = {"host": "127.0.0.1", "port": 0}


class _LocalServer:
    """A server on a thread. Open it with ``with``, or call `start` and `close`."""

    def __init__(self, gguf: str | os.PathLike[str], **settings: Any) -> None:
        """Use `PDDevice` or `AsyncPDDevice`."""
        if taken := sorted({*_FIXED, "api_key", "api_key_file"} & settings.keys()):
            raise ConfigurationError(f"{taken[0]} cannot be set here: use `pdd-device serve`")
        self._gguf = Path(gguf)
        self._key = secrets.token_urlsafe(24)
        flags = {**settings, **_FIXED, "gguf": str(gguf), "api_key": self._key, "api_key_file": None}
        self._settings = ServeSettings.load(None, flags)
        self._resources = ExitStack()
        self._scope: anyio.CancelScope | None = None
        self._url = ""

    def start(self) -> Self:
        """Load the model and start serving. Harmless when repeated.

        Raises:
            ConfigurationError: a setting that cannot work.
            DeviceEngineFailed: llama.cpp cannot make a context of this size.
            ModelError: the file is missing, unreadable or not a GGUF model.
        """
        if self._scope is not None:
            return self
        with ExitStack() as resources:
            portal = resources.enter_context(start_blocking_portal())
            ended, self._scope = portal.start_task(self._serve)
            resources.callback(ended.result)
            resources.callback(portal.call, self._scope.cancel)
            self._resources = resources.pop_all()
        return self

    async def _serve(self, *, task_status: TaskStatus[anyio.CancelScope]) -> None:
        def started(url: str) -> None:
            self._url = f"{url}/v1"

        with anyio.CancelScope() as scope:
            await serve_device(
                self._gguf,
                self._settings,
                on_started=started,
                on_ready=lambda _: task_status.started(scope),
                signals=False,
            )

    def close(self) -> None:
        """Stop what is running and free the model. Harmless when repeated."""
        self._resources.close()
        self._scope = None


class PDDevice(_LocalServer):
    """The device, with OpenAI's interface::

        with PDDevice("model.gguf", cloud_url="http://host:8000/v1") as device:
            answer = device.chat.completions.create(messages=[...], model=device.model, stream=True)

    Args:
        gguf: the model file.
        settings: the fields of `ServeSettings`, but for host, port, api_key and api_key_file. ``PDD_*`` variables
            count as well.
    """

    def start(self) -> Self:
        """Load the model; see `_LocalServer.start`."""
        if self._scope is not None:
            return self
        super().start()
        self.client = new_client(self._url, api_key=self._key, max_retries=0)
        self.chat, self.completions = self.client.chat, self.client.completions
        self.responses, self.models = self.client.responses, self.client.models
        self.model = self.models.list().data[0].id
        """The model's name."""
        return self

    def close(self) -> None:
        """Stop what is running and free the model. Harmless when repeated."""
        if self._scope is not None:
            self.client.close()
        super().close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.close()


class AsyncPDDevice(_LocalServer):
    """The same for programs with an event loop::

    async with AsyncPDDevice("model.gguf") as device:
        answer = await device.chat.completions.create(messages=[...], model=device.model)
    """

    async def __aenter__(self) -> Self:
        await anyio.to_thread.run_sync(self.start)
        self.client = new_async_client(self._url, api_key=self._key, max_retries=0)
        self.chat, self.completions = self.client.chat, self.client.completions
        self.responses, self.models = self.client.responses, self.client.models
        self.model = (await self.models.list()).data[0].id
        """The model's name."""
        return self

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=True):
            await self.client.close()
            await anyio.to_thread.run_sync(self.close)
