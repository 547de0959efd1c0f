"""The options of `pdd-device generate`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from pdd_cli.llama_options import with_llama_options
from pdd_cli.options import (
    KV,
    CloudApiKey,
    CloudApiKeyFile,
    DecodeBudget,
    Json,
    Plot,
    Rate,
    Refine,
    new_console,
)


@with_llama_options
def generate(
    *,
    prompt: Annotated[str | None, typer.Argument(help="The prompt. Default: standard input.")] = None,
    file: Annotated[
        Path | None, typer.Option(help="A file to put before the prompt; - is standard input.", dir_okay=False)
    ] = None,
    system: Annotated[str | None, typer.Option(help="The system prompt.")] = None,
    gguf: Annotated[
        str | None, typer.Option(help="The GGUF file of the device's model.", metavar="demo|PATH")
    ] = None,
    cloud: Annotated[
        str | None, typer.Option(help="The URL of the cloud, such as http://host:8000/v1. Default: none.")
    ] = None,
    cloud_api_key: CloudApiKey = None,
    cloud_api_key_file: CloudApiKeyFile = None,
    cloud_model: Annotated[str | None, typer.Option(help="The name of the model in the cloud.")] = None,
    max_tokens: Annotated[int | None, typer.Option(help="The longest answer, in tokens.", min=1)] = None,
    temperature: Annotated[float, typer.Option(help="The sampling temperature; 0 is greedy.", min=0, max=2)] = 0.0,
    seed: Annotated[int | None, typer.Option(help="The seed of a sampled answer.")] = None,
    rate: Rate = None,
    decode_budget: DecodeBudget = None,
    refine: Refine = None,
    kv: KV = None,
    json: Json = None,
    plot: Plot = None,
    llama: dict[str, object],
) -> None:
    """Answer one prompt on the terminal, with this device alone or with a cloud that begins the answer.

    The answer goes to standard output. On a terminal, the tokens of each engine have a colour of their own. One
    line about the answer goes to standard error. The environment variables of `serve` apply here, too.
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
        "cloud_api_key_file": cloud_api_key_file,
        "cloud_model": cloud_model,
        "gguf": gguf,
        "rate": rate,
        "decode_budget": decode_budget,
        "refine": refine,
        "kv": kv,
    }
    settings = ServeSettings.load(None, {name: flag for name, flag in flags.items() if flag is not None} | llama)
    run_generate(
        question, settings, json_path=json, plot=plot, console=new_console(), notes=new_console(stderr=True)
    )
