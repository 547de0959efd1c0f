"""The options of `pdd-device replay`."""

from __future__ import annotations

from typing import Annotated

import typer

from pdd_cli.options import ApiKey, Json, Plot, Seed, VocabSize, new_console


def replay(
    trace: Annotated[
        str,
        typer.Option(
            help="Request trace: Azure or BurstGPT CSV, Mooncake or own JSONL, or a made-up one.",
            metavar="FILE|chat|editor|documents",
        ),
    ],
    url: Annotated[str | None, typer.Option(help="A server to ask, such as http://host:8000/v1.")] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="Ask the simulator instead.")] = False,
    device: Annotated[
        str, typer.Option(help="Profile of the simulated devices, of `bench device`.", metavar="FILE|phone|laptop")
    ] = "laptop",
    cloud: Annotated[
        str, typer.Option(help="Profile of the simulated cloud, of `bench cloud`.", metavar="FILE|h200-8b")
    ] = "h200-8b",
    policy: Annotated[
        str, typer.Option(help="Of the simulated handoffs.", metavar="planner|plain|fixed_N")
    ] = "planner",
    api_key: ApiKey = None,
    model: Annotated[str | None, typer.Option(help="The name to ask for.  [default: what is served]")] = None,
    format: Annotated[  # noqa: A002 - the flag's name
        str | None,
        typer.Option(help="Of the trace.  [default: found out]", metavar="azure|burstgpt|mooncake|jsonl"),
    ] = None,
    speedup: Annotated[float, typer.Option(help="Arrivals this many times as fast as in the trace.")] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Only this many requests, from the first on.", min=1)] = None,
    concurrency: Annotated[int, typer.Option(help="Most requests at a time.", min=1, max=1000)] = 256,
    rate: Annotated[float, typer.Option(help="Tokens per second that the user reads, for QoE and stalls.")] = 20.0,
    ttft: Annotated[float, typer.Option(help="Seconds after which the user expects the first token.")] = 0.5,
    vocab_size: VocabSize = 32_000,
    seed: Seed = 0,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Replay a request trace against a server (`pdd-device serve`, or any vLLM), or against the simulator.

    Requests arrive when the trace says, whatever becomes of the ones before. Prompts are random token ids of the
    trace's lengths, with common beginnings where the trace knows them; answers are as long as in the trace where
    the server takes ignore_eos and min_tokens. Ctrl-C stops all requests and reports what there is.
    """
    from pdd_lab.replay.replay_figures import Reader
    from pdd_lab.replay.run import Replay, run_replay

    if (simulate and url) or not (simulate or url):
        raise typer.BadParameter("give either --url or --simulate", param_hint="--url")
    wanted = Replay(
        trace=trace,
        format=format,
        url=url,
        device=device,
        cloud=cloud,
        policy=policy,
        api_key=api_key,
        model=model,
        speedup=speedup,
        limit=limit,
        concurrency=concurrency,
        reader=Reader(rate, ttft),
        vocab_size=vocab_size,
        seed=seed,
    )
    run_replay(wanted, json_path=json, plot=plot, console=new_console())
