"""The options of `pdd-device serve`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from pdd_cli.options import ApiKey, ContextSize, DecodeBudget, Rate, Refine, Threads, new_console


def serve(
    config: Annotated[
        Path | None, typer.Option(help="A TOML file with any of these settings, and more.", dir_okay=False)
    ] = None,
    cloud: Annotated[str | None, typer.Option(help="The cloud, such as http://host:8000/v1.")] = None,
    cloud_api_key: ApiKey = None,
    cloud_model: Annotated[str | None, typer.Option(help="The name to ask the cloud for.")] = None,
    cloud_tenant: Annotated[str | None, typer.Option(help="For whom the cloud works, if it has tenants.")] = None,
    gguf: Annotated[str | None, typer.Option(help="The device's model.", metavar="demo|PATH")] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    api_key: Annotated[str | None, typer.Option(help="Clients must present it.")] = None,
    rate: Rate = None,
    pacing: Annotated[
        str | None, typer.Option(help="How to keep the rate.", metavar="adaptive|fixed|ewma|reading|unlimited")
    ] = None,
    decode_budget: DecodeBudget = None,
    plan: Annotated[
        str | None, typer.Option(help="Who makes an answer.", metavar="auto|handoff|cloud|device|off")
    ] = None,
    plan_file: Annotated[
        Path | None, typer.Option(help="Settings and profiles that `pdd-device plan` wrote.", dir_okay=False)
    ] = None,
    refine: Refine = None,
    threads: Threads = None,
    n_ctx: ContextSize = None,
    max_queue: Annotated[int | None, typer.Option(help="Answers that may wait for the device.")] = None,
) -> None:
    """Serve OpenAI's API on this device: the cloud begins each answer, the device finishes it.

    Every setting can also stand in the file, or in the environment as PDD_NAME; flags win over the environment,
    the environment over the file.
    """
    from pdd_cli.serve.run import run_serve
    from pdd_core.env import ServeSettings

    flags = {
        "cloud_url": cloud,
        "cloud_api_key": cloud_api_key,
        "cloud_model": cloud_model,
        "cloud_tenant": cloud_tenant,
        "gguf": gguf,
        "host": host,
        "port": port,
        "api_key": api_key,
        "rate": rate,
        "pacing": pacing,
        "decode_budget": decode_budget,
        "plan": plan,
        "plan_file": plan_file,
        "refine": refine,
        "threads": threads,
        "n_ctx": n_ctx,
        "max_queue": max_queue,
    }
    run_serve(
        ServeSettings.load(config, {name: flag for name, flag in flags.items() if flag is not None}), new_console()
    )
