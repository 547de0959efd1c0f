"""The command ``pdd-device``."""

from __future__ import annotations

import sys
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from pdd_cli.demo.command import demo
from pdd_cli.extensions import add_installed
from pdd_cli.generate.command import generate
from pdd_cli.options import IN_PS, ApiKey, ApiKeyFile, Gguf, gguf_path, given_key, new_console
from pdd_cli.serve.command import serve
from pdd_core.errors import ConfigurationError, PDDError, first_of_ours

app = typer.Typer(
    help="Begin an LLM answer with vLLM in the cloud, and finish it with llama.cpp on the device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

BAD_SETTING = 2
"""Exit code: nothing was done, because a setting is wrong or something is not installed."""
FAILED = 1
INTERRUPTED = 130

app.command()(demo)
app.command()(serve)
app.command()(generate)


@app.command()
def model(
    gguf: Gguf = "demo",
    out: Annotated[
        Path | None, typer.Option(help="A folder to copy the prepared files to.", file_okay=False)
    ] = None,
) -> None:
    """Prepare a model for both engines: an F16 GGUF for llama.cpp and a float32 folder for vLLM.

    Refuses a file if something in it would be lost, and says how closely the two agree.
    """
    from pdd_cli.demo_model import copy_to, prepare
    from pdd_cli.progress import ConsoleProgress

    console = new_console()
    prepared = prepare(gguf_path(gguf), progress=ConsoleProgress(console))
    if out is not None:
        prepared = copy_to(out, prepared)
    console.print(f"device  {prepared.gguf}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"cloud   {prepared.vllm_dir}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"agree   {prepared.agreement}", soft_wrap=True, highlight=False, markup=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def cloud(
    context: typer.Context,
    model: Annotated[
        str,
        typer.Option(
            help="The model: a folder, a name on the model hub, a GGUF file, or `demo`.", metavar="demo|MODEL"
        ),
    ],
    host: Annotated[str, typer.Option(help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port to listen on.", min=1, max=65535)] = 8000,
    api_key: Annotated[
        str | None,
        typer.Option(
            help=f"The key that clients must send. {IN_PS}: better use the variable or --api-key-file.",
            envvar="VLLM_API_KEY",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file that holds the key that clients must send.", dir_okay=False)
    ] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Print the command, and start nothing.")] = False,
) -> None:
    """Start vLLM with the plugin. Other flags are passed to `vllm serve`, and override those of this command.

    For a model in a folder, whose chat template tells how it calls tools, vLLM's parser for them is switched on.
    """
    from pdd_cli.cloud import print_command, serve, server_of
    from pdd_cli.progress import ConsoleProgress

    console = new_console(stderr=only_print)
    key = given_key(api_key, api_key_file)
    server = server_of(
        model, host=host, port=port, api_key=key, flags=context.args, progress=ConsoleProgress(console)
    )
    if only_print:
        print_command(server.command, console)
    else:
        serve(server, console)


@app.command()
def doctor(
    url: Annotated[
        str | None, typer.Option(help="The URL of a cloud to check, such as http://host:8000/v1.")
    ] = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    gguf: Annotated[
        str | None,
        typer.Option(help="A device model to compare with the model of the cloud.", metavar="demo|PATH"),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this installation and a cloud: report what is missing or would fail, and how to fix it."""
    from pdd_cli.doctor import report

    key = given_key(api_key, api_key_file)
    raise typer.Exit(report(url=url, api_key=key, gguf=gguf, as_json=json, console=new_console()))


add_installed(app)


def main() -> None:
    """Run the command; errors of ours become one message and an exit code, never a traceback."""
    try:
        app()
    except (PDDError, BaseExceptionGroup) as raised:
        error = first_of_ours(raised)
        if not isinstance(error, PDDError):
            raise
        print(f"pdd-device: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(BAD_SETTING if isinstance(error, ConfigurationError) else FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
