"""The options of `pdd-device plan`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from pdd_cli.options import BlockSize, Json, Seed, TimeUnit, TraceFormat, new_console
from pdd_core.planner.cost import GPU_HOUR_PRICE

_PICTURE = typer.Option(
    help="Write a plot of the Pareto front to this PNG file, and an SVG beside it.", dir_okay=False
)


def plan(
    context: typer.Context,
    trace: Annotated[
        str,
        typer.Option(help="The requests: a trace file, or a made-up trace.", metavar="FILE|chat|editor|documents"),
    ] = "chat",
    device: Annotated[
        str, typer.Option(help="A profile from `bench device`, or a built-in one.", metavar="FILE|phone|laptop")
    ] = "laptop",
    cloud: Annotated[
        str, typer.Option(help="A profile from `bench cloud`, or a built-in one.", metavar="FILE|h200-8b")
    ] = "h200-8b",
    fleet: Annotated[
        Path | None, typer.Option(help="Plan for classes of requests and a number of GPUs.", dir_okay=False)
    ] = None,
    policy: Annotated[
        str,
        typer.Option(
            help="The policy whose settings are written.", metavar="planner|best_fixed|fixed_N|oracle|plain"
        ),
    ] = "planner",
    rate: Annotated[float, typer.Option(help="Tokens per second at which answers are shown.", min=0.1)] = 20.0,
    ratio: Annotated[
        str | None,
        typer.Option(
            help="Share of a prompt that devices read. Default: 1. `auto`: the planner chooses.",
            metavar="auto|RHO",
        ),
    ] = None,
    device_prefill_tps: Annotated[
        float | None,
        typer.Option(help="The device's prefill rate at every length, in tokens per second.", min=0.1),
    ] = None,
    noise: Annotated[
        float | None,
        typer.Option(help="Relative spread of the device's speed from request to request.", min=0, max=5),
    ] = None,
    rtt_ms: Annotated[
        float | None, typer.Option(help="Round trip to the cloud and its standard deviation, in ms.", min=0)
    ] = None,
    jitter_ms: Annotated[
        float | None, typer.Option(help="Another standard deviation of the round trip, in ms.", min=0)
    ] = None,
    stall_probability: Annotated[
        float, typer.Option(help="Share of answers that may stall at the handoff.")
    ] = 0.01,
    ttft_target: Annotated[
        float, typer.Option(help="Seconds within which an answer of the device alone has to begin.")
    ] = 0.5,
    must_begin_in_cloud: Annotated[
        bool, typer.Option("--must-begin-in-cloud", help="Begin every answer in the cloud.")
    ] = False,
    max_tokens: Annotated[
        int | None,
        typer.Option(
            help="The longest answer, in tokens; longer ones of the trace end there. Default: none does.",
            min=1,
        ),
    ] = None,
    requests: Annotated[int | None, typer.Option(help="Use only the first N requests.", min=2)] = None,
    format: TraceFormat = None,  # noqa: A002 - the flag's name
    block_size: BlockSize = None,
    time_unit: TimeUnit = None,
    kv: Annotated[
        str,
        typer.Option(help="Whether devices load the cloud's KV cache of a prompt.", metavar="off|auto|always"),
    ] = "off",
    link: Annotated[
        str | None,
        typer.Option(
            help="The link over which it comes. Default: as fast as the cloud's profile says.",
            metavar="4g|5g|wifi|lan|100mbit",
        ),
    ] = None,
    kv_cell_bytes: Annotated[
        int | None, typer.Option(help="Bytes of one token's cell. Default: the cloud profile's.", min=1)
    ] = None,
    kv_price_per_gb: Annotated[
        float, typer.Option(help="What 10^9 bytes cost, in the currency of --gpu-hour-price.", min=0)
    ] = 0.0,
    gpu_hour_price: Annotated[
        float, typer.Option(help="What an hour of the cloud's engine costs, in any currency.", min=1e-9)
    ] = GPU_HOUR_PRICE,
    seed: Seed = 0,
    json: Json = None,
    plot: Annotated[Path | None, _PICTURE] = None,
    settings: Annotated[
        Path | None, typer.Option(help="Write a settings file for `serve --plan-file`.", dir_okay=False)
    ] = None,
) -> None:
    """Simulate what handing off would be worth on a trace, with the profiles of a device and a cloud.

    No server is started. A simulator serves the trace with plain vLLM, with fixed decode budgets, with the
    planner, and with an oracle that knows the length of every answer beforehand.
    """
    from pdd_core.errors import ConfigurationError

    console = new_console()
    if fleet is not None:
        from pdd_lab.plan.fleet import run_fleet

        if others := _given(context) - {"fleet", "json"}:
            flags = ", ".join(sorted(f"--{name.replace('_', '-')}" for name in others))
            raise ConfigurationError(
                f"--fleet goes with --json alone, not with {flags}: its file has what it needs"
            )
        run_fleet(fleet, json_path=json, console=console)
        return
    from pdd_lab.plan.plan_options import PlanOptions
    from pdd_lab.plan.run import run_plan
    from pdd_lab.traces import TraceOptions

    options = PlanOptions(
        trace=trace,
        device=device,
        cloud=cloud,
        trace_options=TraceOptions(format=format, block_size=block_size, time_unit=time_unit),
        requests=requests,
        policy=policy,
        rate=rate,
        ratio=ratio,
        device_prefill_tps=device_prefill_tps,
        noise=noise,
        rtt_ms=rtt_ms,
        jitter_ms=jitter_ms,
        stall_probability=stall_probability,
        ttft_target=ttft_target,
        must_begin_in_cloud=must_begin_in_cloud,
        max_tokens=max_tokens,
        kv=kv,
        link=link,
        kv_cell_bytes=kv_cell_bytes,
        kv_price_per_gb=kv_price_per_gb,
        gpu_hour_price=gpu_hour_price,
        seed=seed,
    )
    run_plan(options, json_path=json, plot=plot, settings=settings, console=console)


def _given(context: typer.Context) -> set[str]:
    """Return the names of the options that the command line gives."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source is not None and source.name == "COMMANDLINE"}
