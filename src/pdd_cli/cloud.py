"""``pdd-device cloud``: vLLM with the plugin, in one command."""

from __future__ import annotations

import os
import signal
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pdd_cli.cloud_command import KEY_VARIABLE, merged_flags
from pdd_cli.demo_model import DEMO_NAME, prepare
from pdd_cli.launcher import CloudServer
from pdd_cli.progress import ConsoleProgress
from pdd_core.errors import CloudLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from rich.console import Console

    from pdd_cli.cloud_command import CloudCommand
    from pdd_cli.progress import Progress

DEMO = "demo"
"""Stands for the demo model wherever a model is asked for."""
_GGUF_FLAGS = (("--max-model-len", "auto"),)
"""In float32 a whole context may need more memory than there is: vLLM then takes what fits."""


def server_of(
    model: str, *, host: str, port: int, api_key: str | None, flags: Sequence[str], progress: Progress
) -> CloudServer:
    """Return the server of `model`, not started; the demo model and a GGUF file are prepared first.

    Raises:
        ConfigurationError: vLLM is not installed.
        ModelError: the model cannot be prepared.
    """
    path = Path(model)
    folder: Path | str
    name: str | None
    if model == DEMO:
        folder, name = prepare(progress=progress).vllm_dir, DEMO_NAME
    elif path.suffix == ".gguf":
        prepared = prepare(path, progress=progress)
        folder, name, flags = prepared.vllm_dir, prepared.name, merged_flags(_GGUF_FLAGS, flags)
    else:
        folder, name = path.resolve() if path.is_dir() else model, None
    return CloudServer(
        folder,
        served_name=name,
        host=host,
        port=port,
        api_key=api_key,
        demo=model == DEMO,
        extra_args=flags,
    )


def print_command(command: CloudCommand, console: Console) -> None:
    """Print the one line that starts the server; what there is to say about it goes to `console`."""
    if command.api_key and os.environ.get(KEY_VARIABLE) != command.api_key:
        console.print(f"Set {KEY_VARIABLE} to the key before running this line.", style="yellow", highlight=False)
    print(command.shell_line())  # noqa: T201 - rich would wrap it


def serve(server: CloudServer, console: Console) -> None:
    """Start `server` and show vLLM's log until it ends.

    Raises:
        ConfigurationError: vLLM cannot start with these settings.
        CloudLost: vLLM ended by itself while serving.
    """
    console.print(server.command.shell_line(), style="dim", soft_wrap=True, markup=False, highlight=False)
    with ended_by_sigterm(), started(server, console, log=lambda line: print(line, flush=True)):  # noqa: T201
        raise CloudLost(f"vLLM ended with code {server.wait()}")


@contextmanager
def started(
    server: CloudServer, console: Console, *, log: Callable[[str], None] | None = None
) -> Iterator[CloudServer]:
    """Start `server`, showing what it does meanwhile, and say when it is ready.

    Args:
        server: not started yet.
        console: where to say it.
        log: gets each line that the server writes from then on, on another thread.
    """
    with ConsoleProgress(console)("Starting vLLM") as step:
        server.on_wait = step.say
        server.__enter__()
    try:
        if log is not None:
            server.echo = log  # before anybody is told to ask: what that makes it write is to be seen
        console.print(f"Ready: {server.base_url}", style="bold green", highlight=False)
        yield server
    finally:
        server.stop()


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Turn SIGTERM into an orderly exit while the block runs: what it started gets ended."""

    def leave(number: int, _frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
