"""The options of `pdd-device generate`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from pdd_cli.options import (
    ApiKey,
    ContextSize,
    DecodeBudget,
    Json,
    Plot,
    Rate,
    Refine,
    Threads,
    new_console,
)


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to ask.  [default: standard input]")] = None,
    file: Annotated[
        Path | None, typer.Option(help="Text to put before the prompt; - is standard input.", dir_okay=False)
    ] = None,
    system: Annotated[str | None, typer.Option(help="System prompt.")] = None,
    gguf: Annotated[str | None, typer.Option(help="The device's model.", metavar="demo|PATH")] = None,
    cloud: Annotated[
        str | None, typer.Option(help="The cloud, such as http://host:8000/v1.  [default: none]")
    ] = None,
    cloud_api_key: ApiKey = None,
    cloud_model: Annotated[str | None, typer.Option(help="The name to ask the cloud for.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="Longest answer.", min=1)] = None,
    temperature: Annotated[float, typer.Option(help="0 always takes the likeliest token.", min=0, max=2)] = 0.0,
    seed: Annotated[int | None, typer.Option(help="Makes a sampled answer repeatable.")] = None,
    rate: Rate = None,
    decode_budget: DecodeBudget = None,
    refine: Refine = None,
    threads: Threads = None,
    n_ctx: ContextSize = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Answer one prompt on the terminal: by this device alone, or begun by a cloud.

    The answer goes to standard output, in the colours of who made it if that is a terminal; one line about it to
    standard error. Settings that `serve` reads from the environment count here too.
    """
    from pdd_cli.generate.question import Question, read_prompt
    from pdd_cli.generate.run import run_generate
    from pdd_core.env import ServeSettings

    question = Question(
        prompt=read_prompt(prompt, file),
        system=system,
        max_tokens=max_tokens,
        temperature=temperature,
        seed=seed,
    )
    flags = {
        "cloud_url": cloud,
        "cloud_api_key": cloud_api_key,
        "cloud_model": cloud_model,
        "gguf": gguf,
        "rate": rate,
        "decode_budget": decode_budget,
        "refine": refine,
        "threads": threads,
        "n_ctx": n_ctx,
    }
    settings = ServeSettings.load(None, {name: flag for name, flag in flags.items() if flag is not None})
    run_generate(
        question, settings, json_path=json, plot=plot, console=new_console(), notes=new_console(stderr=True)
    )
