"""The options of `pdd-device replay`."""

from __future__ import annotations

from typing import Annotated

import typer

from pdd_cli.options import (
    ApiKey,
    ApiKeyFile,
    BlockSize,
    Json,
    Plot,
    Seed,
    TimeUnit,
    TraceFormat,
    VocabSize,
    given_key,
    new_console,
)


def replay(
    trace: Annotated[
        str,
        typer.Option(
            help="The trace: a CSV of Azure or BurstGPT, JSON lines, or a made-up trace.",
            metavar="FILE|chat|editor|documents",
        ),
    ],
    url: Annotated[str | None, typer.Option(help="The URL of the server, such as http://host:8000/v1.")] = None,
    simulate: Annotated[bool, typer.Option("--simulate", help="Use the simulator in place of a server.")] = False,
    device: Annotated[
        str,
        typer.Option(
            help="The profile of the simulated devices, from `bench device`.", metavar="FILE|phone|laptop"
        ),
    ] = "laptop",
    cloud: Annotated[
        str, typer.Option(help="The profile of the simulated cloud, from `bench cloud`.", metavar="FILE|h200-8b")
    ] = "h200-8b",
    policy: Annotated[
        str, typer.Option(help="The policy of the simulated handoffs.", metavar="planner|plain|fixed_N")
    ] = "planner",
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    model: Annotated[str | None, typer.Option(help="The name of the model. Default: the served model.")] = None,
    format: TraceFormat = None,  # noqa: A002 - the flag's name
    block_size: BlockSize = None,
    time_unit: TimeUnit = None,
    speedup: Annotated[float, typer.Option(help="How many times faster requests arrive than in the trace.")] = 1.0,
    limit: Annotated[int | None, typer.Option(help="Replay only the first N requests.", min=1)] = None,
    concurrency: Annotated[int, typer.Option(help="The most requests at a time.", min=1, max=1000)] = 256,
    rate: Annotated[float, typer.Option(help="Tokens per second that the user reads, for QoE and stalls.")] = 20.0,
    ttft: Annotated[float, typer.Option(help="Seconds after which the user expects the first token.")] = 0.5,
    vocab_size: VocabSize = 32_000,
    seed: Seed = 0,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Replay a request trace against a server (`pdd-device serve`, or any vLLM), or against the simulator.

    Requests arrive at the times of the trace, even if earlier ones have not ended. Prompts are random token ids
    with the trace's lengths, and share prefixes if the trace has them. Answers are as long as in the trace if the
    server supports ignore_eos and min_tokens. Ctrl-C stops all requests and reports the answers so far.
    """
    from pdd_lab.replay.replay_figures import Reader
    from pdd_lab.replay.run import Replay, run_replay
    from pdd_lab.traces import TraceOptions

    if (simulate and url) or not (simulate or url):
        raise typer.BadParameter("give either --url or --simulate", param_hint="--url")
    wanted = Replay(
        trace=trace,
        trace_options=TraceOptions(format=format, block_size=block_size, time_unit=time_unit),
        url=url,
        device=device,
        cloud=cloud,
        policy=policy,
        api_key=given_key(api_key, api_key_file),
        model=model,
        speedup=speedup,
        limit=limit,
        concurrency=concurrency,
        reader=Reader(rate, ttft),
        vocab_size=vocab_size,
        seed=seed,
    )
    run_replay(wanted, json_path=json, plot=plot, console=new_console())
