"""Starts a vLLM server, waits until it serves, and ends it with all its children, however we end ourselves."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import deque
from typing import IO, TYPE_CHECKING, Self

from pdd_cli.cloud_command import cloud_command
from pdd_cli.watchdog import GRACE, end_group
from pdd_core.errors import CloudUnreachable, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from pdd_cli.cloud_command import CloudCommand

START_TIMEOUT = 900.0
"""Seconds. A large model on a slow disk takes minutes to load."""
_TAIL = 60
"""Lines of the log that are kept for an error message."""
_POLL = 0.5


class ServerProcess:
    """A server in a process group of its own. A context manager: `start` and `stop`."""

    def __init__(
        self, command: CloudCommand, *, log_path: Path | None = None, echo: Callable[[str], None] | None = None
    ) -> None:
        """Describe the server.

        Args:
            command: what to run.
            log_path: where to write the server's output; None keeps only its last lines.
            echo: called with each line of output, without its line feed, on another thread.
        """
        self.command = command
        self.echo = echo
        self._log_path = log_path
        self._tail: deque[str] = deque(maxlen=_TAIL)
        self._process: subprocess.Popen[str] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and what ends it if we are killed."""
        self._process = subprocess.Popen(
            self.command.argv,
            env=self.command.environment(os.environ),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is ours to handle, and the group is the server's alone
        )
        self._watchdog = subprocess.Popen(
            [sys.executable, "-m", "pdd_cli.watchdog", str(self._process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        output = self._process.stdout
        self._reader = threading.Thread(target=self._read, args=(output,), name="server-output", daemon=True)
        self._reader.start()

    def stop(self, *, grace: float = GRACE) -> None:
        """End the server and all its children. Harmless when repeated."""
        process, self._process = self._process, None
        if process is None:
            return
        try:
            end_group(process.pid, grace=grace, reap=process.poll)
        finally:
            if self._watchdog is not None:
                with contextlib.suppress(BrokenPipeError):
                    self._watchdog.communicate(b"x")
            if self._reader is not None:
                self._reader.join(timeout=2)

    @property
    def pid(self) -> int:
        """The server's process id, which is also its group's.

        Raises:
            CloudUnreachable: it is not started.
        """
        if self._process is None:
            raise CloudUnreachable("the server is not running")
        return self._process.pid

    def exit_code(self) -> int | None:
        """Return the server's exit code, negative for a signal; None while it runs."""
        return None if self._process is None else self._process.poll()

    def wait(self) -> int:
        """Return the server's exit code once it has ended."""
        return 0 if self._process is None else self._process.wait()

    def log_tail(self, lines: int = _TAIL) -> str:
        """Return the last lines of the server's output."""
        return "\n".join(list(self._tail)[-lines:])

    def _read(self, output: IO[str]) -> None:
        with contextlib.ExitStack() as stack:
            stack.enter_context(output)
            log = stack.enter_context(self._log_path.open("w", buffering=1)) if self._log_path else None
            for line in output:
                self._tail.append(line.rstrip())
                if log is not None:
                    log.write(line)
                if self.echo is not None:
                    self.echo(line.rstrip())


class CloudServer(ServerProcess):
    """vLLM with the plugin, serving a model on this machine::

        with CloudServer(folder, served_name="m", api_key="k") as server:
            openai.OpenAI(base_url=server.base_url, api_key="k")

    On entry it starts and waits until vLLM serves, which takes a minute or two; on exit everything is ended.
    """

    def __init__(
        self,
        model: str | Path,
        *,
        served_name: str | None = None,
        host: str = "127.0.0.1",
        port: int | None = None,
        api_key: str | None = None,
        demo: bool = False,
        extra_args: Sequence[str] = (),
        log_path: Path | None = None,
        echo: Callable[[str], None] | None = None,
        start_timeout: float = START_TIMEOUT,
    ) -> None:
        """Describe the server.

        Args:
            model: a folder, or a name that vLLM knows how to fetch.
            served_name: the name that requests ask for.
            host: the address to listen on.
            port: None takes one that is free.
            api_key: what clients must present; None leaves the server open.
            demo: whether it is the demo model, whose context and statistics are settled.
            extra_args: any flags of ``vllm serve``, which win over ours.
            log_path: where to write vLLM's output; None keeps only its last lines.
            echo: called with each line of vLLM's output, on another thread.
            start_timeout: seconds.

        Raises:
            ConfigurationError: vLLM is not installed.
        """
        self._host, self._port = host, port or _free_port(host)
        self._start_timeout = start_timeout
        self.on_wait: Callable[[str], None] = lambda _: None
        """Called twice a second while vLLM starts, with the last line of its output."""
        command = cloud_command(
            str(model),
            bind=(self._host, self._port),
            environ=os.environ,
            served_name=served_name,
            api_key=api_key,
            demo=demo,
            extra_args=extra_args,
        )
        super().__init__(command, log_path=log_path, echo=echo)

    @property
    def root_url(self) -> str:
        """Where to reach the server from this machine."""
        address = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self._host, self._host)  # noqa: S104 - compared
        return f"http://{f'[{address}]' if ':' in address else address}:{self._port}"

    @property
    def base_url(self) -> str:
        """As an OpenAI client wants it."""
        return f"{self.root_url}/v1"

    def __enter__(self) -> Self:
        _require_free(self._host, self._port)
        self.start()
        try:
            self.wait_ready()
        except BaseException:
            self.stop()
            raise
        return self

    def wait_ready(self) -> None:
        """Return once the server answers ``GET /health``.

        Raises:
            ConfigurationError: vLLM ended by itself; the message has the end of its log.
            CloudUnreachable: it takes longer than `start_timeout`.
        """
        deadline = time.monotonic() + self._start_timeout
        while not _healthy(f"{self.root_url}/health"):
            if (code := self.exit_code()) is not None:
                if self._reader is not None:
                    self._reader.join(timeout=2)  # the last words may still be on their way
                raise ConfigurationError(f"vLLM ended with code {code} while starting:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise CloudUnreachable(
                    f"vLLM does not serve after {self._start_timeout:.0f} s; its log ends:\n{self.log_tail()}"
                )
            self.on_wait(self.log_tail(1))
            time.sleep(_POLL)


_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks no proxy, whatever the environment says: the server runs on this machine."""


def _healthy(url: str) -> bool:
    try:
        with _DIRECT.open(url, timeout=2) as answer:
            return bool(answer.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _free_port(host: str) -> int:
    with socket.create_server((host, 0), family=_family(host)) as probe:
        return int(probe.getsockname()[1])


def _require_free(host: str, port: int) -> None:
    """Another server's answer to /health would pass for ours.

    Raises:
        ConfigurationError: the port is taken, or the address is not this machine's.
    """
    try:
        socket.create_server((host, port), family=_family(host)).close()
    except OSError as error:
        raise ConfigurationError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from error


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
