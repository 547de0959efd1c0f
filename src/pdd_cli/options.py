"""What the command line's options have in common."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pdd_core.errors import ConfigurationError
from pdd_core.key_file import one_key

if TYPE_CHECKING:
    from rich.console import Console

Gguf = Annotated[
    str, typer.Option(help="The GGUF file of the model, or `demo` for the demo model.", metavar="demo|PATH")
]
IN_PS = "On the command line it shows in `ps`"
ApiKey = Annotated[
    str | None,
    typer.Option(
        help=f"The API key of the cloud. {IN_PS}: better use the variable or --api-key-file.",
        envvar="PDD_CLOUD_API_KEY",
    ),
]
ApiKeyFile = Annotated[
    Path | None,
    typer.Option(
        help="A file that holds the API key of the cloud.", envvar="PDD_CLOUD_API_KEY_FILE", dir_okay=False
    ),
]
CloudApiKey = Annotated[
    str | None,
    typer.Option(
        help=f"The API key of the cloud. {IN_PS}: better use the variable or --cloud-api-key-file.",
        envvar="PDD_CLOUD_API_KEY",
    ),
]
CloudApiKeyFile = Annotated[
    Path | None, typer.Option(help="A file that holds the API key of the cloud.", dir_okay=False)
]
Json = Annotated[
    Path | None, typer.Option("--json", help="Write all figures to this file, as JSON.", dir_okay=False)
]
Plot = Annotated[
    Path | None, typer.Option(help="Write a plot to this PNG file, and an SVG beside it.", dir_okay=False)
]
Seed = Annotated[int, typer.Option(help="The seed of the random numbers.", min=0)]
VocabSize = Annotated[int, typer.Option(help="Prompts are random token ids below this number.", min=2)]
TraceFormat = Annotated[
    str | None,
    typer.Option(
        help="The format of the trace. Default: detected.",
        metavar="azure|bailian|dynamo|mooncake|burstgpt|jsonl",
    ),
]
BlockSize = Annotated[
    int | None,
    typer.Option(help="Prompt tokens of each hash of the trace. Default: the format's.", min=1),
]
TimeUnit = Annotated[
    str | None, typer.Option(help="The unit of the trace's timestamps. Default: the format's.", metavar="s|ms|us")
]
Rate = Annotated[
    str | None, typer.Option(help="Tokens per second at which the answer is shown.", metavar="auto|unlimited|R")
]
DecodeBudget = Annotated[
    str | None, typer.Option(help="Tokens that the cloud may decode before the device goes on.", metavar="auto|N")
]
Refine = Annotated[
    str | None,
    typer.Option(
        help="How much of the prompt the device reads.", metavar="off|auto|0.25|'N tokens'|'N s'|context"
    ),
]
KV = Annotated[
    str | None,
    typer.Option(
        "--kv",
        help="Whether the device loads the cloud's KV cache of the prompt instead of reading it.",
        metavar="off|auto|always",
    ),
]


def check_number(flag: str, value: float | None, least: float, most: float) -> None:
    """Pass if `value`, where there is one, is from `least` to `most`: neither is infinite, and nan is no number.

    Raises:
        ConfigurationError: it is not; the message has the flag.
    """
    if value is not None and not least <= value <= most:
        raise ConfigurationError(f"{flag} must be from {least:g} to {most:g}, not {value:g}")


def given_key(key: str | None, file: Path | None) -> str | None:
    """Return the key that `--api-key` gives, or the file of `--api-key-file`; None without either.

    Raises:
        ConfigurationError: both are given, or the file has no key.
    """
    return one_key("--api-key", key, file)


def gguf_path(name: str) -> Path | None:
    """Return the model file that an option names; None stands for the demo model."""
    return None if name == "demo" else Path(name)


def new_console(*, stderr: bool = False) -> Console:
    """Return a console on standard output, or on standard error."""
    from rich.console import Console

    return Console(stderr=stderr)
