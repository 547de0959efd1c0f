"""What the command line's options have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from rich.console import Console

Gguf = Annotated[str, typer.Option(help="A GGUF file, or `demo` for the demo model.", metavar="demo|PATH")]
ApiKey = Annotated[str | None, typer.Option(help="The cloud's key.", envvar="PDD_CLOUD_API_KEY")]
Json = Annotated[Path | None, typer.Option("--json", help="Write all figures to this file.", dir_okay=False)]
Plot = Annotated[
    Path | None, typer.Option(help="Draw what was measured: a PNG, and an SVG beside it.", dir_okay=False)
]
Seed = Annotated[int, typer.Option(help="Makes chance repeatable.", min=0)]
VocabSize = Annotated[int, typer.Option(help="Prompts are random ids below this.", min=2)]
Rate = Annotated[str | None, typer.Option(help="Tokens per second to show.", metavar="auto|unlimited|R")]
DecodeBudget = Annotated[str | None, typer.Option(help="Tokens that the cloud may decode.", metavar="auto|N")]
Refine = Annotated[
    str | None,
    typer.Option(help="How much of a prompt the device reads.", metavar="off|auto|0.25|'N tokens'|'N s'|context"),
]
Threads = Annotated[int | None, typer.Option(help="The device's CPU threads.")]
ContextSize = Annotated[int | None, typer.Option(help="Tokens that the device's context holds.")]


def check_number(flag: str, value: float | None, least: float, most: float) -> None:
    """Pass if `value`, where there is one, is from `least` to `most`: neither is infinite, and nan is no number.

    Raises:
        ConfigurationError: it is not; the message has the flag.
    """
    if value is not None and not least <= value <= most:
        raise ConfigurationError(f"{flag} must be from {least:g} to {most:g}, not {value:g}")


def gguf_path(name: str) -> Path | None:
    """Return the model file that an option names; None stands for the demo model."""
    return None if name == "demo" else Path(name)


def new_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output, or on standard error."""
    from rich.console import Console

    return Console(stderr=stderr)
