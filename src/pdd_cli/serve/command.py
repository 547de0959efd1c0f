"""The options of `pdd-device serve`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from pdd_cli.llama_options import with_llama_options
from pdd_cli.options import IN_PS, KV, CloudApiKey, CloudApiKeyFile, DecodeBudget, Rate, Refine, new_console


@with_llama_options
def serve(
    *,
    config: Annotated[Path | None, typer.Option(help="A TOML file with settings.", dir_okay=False)] = None,
    cloud: Annotated[str | None, typer.Option(help="The URL of the cloud, such as http://host:8000/v1.")] = None,
    cloud_api_key: CloudApiKey = None,
    cloud_api_key_file: CloudApiKeyFile = None,
    cloud_model: Annotated[str | None, typer.Option(help="The name of the model in the cloud.")] = None,
    cloud_tenant: Annotated[str | None, typer.Option(help="The tenant whose budgets apply in the cloud.")] = None,
    session_header: Annotated[
        str | None,
        typer.Option(help="The header by which a router keeps a conversation on one replica; '' for none."),
    ] = None,
    gguf: Annotated[
        str | None, typer.Option(help="The GGUF file of the device's model.", metavar="demo|PATH")
    ] = None,
    host: Annotated[str | None, typer.Option(help="The address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="The port to listen on; 0 takes a free port.")] = None,
    api_key: Annotated[
        str | None,
        typer.Option(
            help=f"The key that clients must send. {IN_PS}: better use the variable PDD_API_KEY or --api-key-file."
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="A file that holds the key that clients must send.", dir_okay=False)
    ] = None,
    allow_no_key: Annotated[
        bool | None,
        typer.Option("--allow-no-key", help="Listen without a key on an address that other machines reach."),
    ] = None,
    no_ui: Annotated[bool | None, typer.Option("--no-ui", help="Serve no pages at / and /status.")] = None,
    rate: Rate = None,
    pacing: Annotated[
        str | None, typer.Option(help="How tokens are paced.", metavar="adaptive|fixed|ewma|reading|unlimited")
    ] = None,
    decode_budget: DecodeBudget = None,
    plan: Annotated[
        str | None, typer.Option(help="Who makes the answers.", metavar="auto|handoff|cloud|device|off")
    ] = None,
    plan_file: Annotated[
        Path | None,
        typer.Option(help="A file with settings and profiles, from `pdd-device plan`.", dir_okay=False),
    ] = None,
    refine: Refine = None,
    kv: KV = None,
    kv_price_per_gb: Annotated[
        float | None, typer.Option(help="What 10^9 bytes from the cloud cost, in the currency of gpu_hour_price.")
    ] = None,
    kv_metered: Annotated[
        bool | None, typer.Option("--kv-metered", help="The link is metered: `--kv auto` loads nothing.")
    ] = None,
    max_queue: Annotated[
        int | None, typer.Option(help="Answers that may wait for the device; more are refused.")
    ] = None,
    tracing: Annotated[
        bool | None, typer.Option("--tracing", help="Make OpenTelemetry spans of each answer.")
    ] = None,
    llama: dict[str, object],
) -> None:
    """Serve OpenAI's API on this device: the cloud begins an answer, and the device finishes it.

    You can also give every setting in the file, or in the environment as PDD_NAME. Flags win over the
    environment, and the environment wins over the file.
    """
    from pdd_cli.serve.run import run_serve
    from pdd_core.env import ServeSettings

    flags = {
        "cloud_url": cloud,
        "cloud_api_key": cloud_api_key,
        "cloud_api_key_file": cloud_api_key_file,
        "cloud_model": cloud_model,
        "cloud_tenant": cloud_tenant,
        "session_header": session_header,
        "gguf": gguf,
        "host": host,
        "port": port,
        "api_key": api_key,
        "api_key_file": api_key_file,
        "allow_no_key": allow_no_key,
        "ui": False if no_ui else None,
        "rate": rate,
        "pacing": pacing,
        "decode_budget": decode_budget,
        "plan": plan,
        "plan_file": plan_file,
        "refine": refine,
        "kv": kv,
        "kv_price_per_gb": kv_price_per_gb,
        "kv_metered": kv_metered,
        "max_queue": max_queue,
        "tracing": tracing,
    }
    run_serve(
        ServeSettings.load(config, {name: flag for name, flag in flags.items() if flag is not None} | llama),
        new_console(),
    )
