"""The options of `pdd-device bench device` and `bench cloud`."""

from __future__ import annotations

from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from pdd_cli.options import ApiKey, ApiKeyFile, Gguf, Json, Plot, VocabSize, gguf_path, given_key, new_console

benchmark = typer.Typer(help="Measure your own hardware into a profile for the planner.", no_args_is_help=True)


@benchmark.command(name="device")
def bench_device(
    gguf: Gguf = "demo",
    threads: Annotated[
        str | None,
        typer.Option(help="Numbers of CPU threads to compare. Default: 1, 2, 4 ... all.", metavar="1,2,..."),
    ] = None,
    longest: Annotated[int, typer.Option(help="Measure contexts of up to this many tokens.", min=128)] = 2048,
    n_ctx: Annotated[
        int, typer.Option(help="The context that the device will serve with, in tokens.", min=128)
    ] = 4096,
    reps: Annotated[int, typer.Option(help="Repetitions; the median counts.", min=1)] = 5,
    flash_attn: Annotated[bool, typer.Option("--flash-attn", help="Measure with flash attention.")] = False,
    name: Annotated[str | None, typer.Option(help="The name of the profile. Default: the processor's.")] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Run a short, rough benchmark, to see if it works here.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write the profile to this file, and a plot beside it.")] = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Measure the prefill and decode rates of llama.cpp here, by context length, batch size and threads.

    The profile is for the number of threads with the fastest prefill. Give --threads one number to get the
    profile for that number.
    """
    from pdd_lab.bench.cloud_plan import parse_numbers
    from pdd_lab.bench.device_bench import DeviceBench, run_device

    wanted = DeviceBench(
        gguf=gguf_path(gguf),
        threads=() if threads is None else parse_numbers(threads, "--threads"),
        longest=longest,
        n_ctx=n_ctx,
        reps=reps,
        quick=quick,
        flash_attn=flash_attn,
        name=name,
    )
    run_device(wanted, out=out, json_path=json, plot=plot, console=new_console())


@benchmark.command(name="cloud")
def bench_cloud(
    url: Annotated[str, typer.Option(help="The URL of the cloud, such as http://host:8000/v1.")],
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    model: Annotated[str | None, typer.Option(help="The name of the model. Default: the served model.")] = None,
    lengths: Annotated[
        str, typer.Option(help="Prompt lengths, separated by commas.", metavar="128,...")
    ] = "128,256,512,1024,2048",
    widths: Annotated[
        str, typer.Option(help="Numbers of answers at a time, separated by commas.", metavar="1,...")
    ] = "1,2,4,8",
    reps: Annotated[int, typer.Option(help="Repetitions; the median counts.", min=1)] = 3,
    most_tokens: Annotated[
        int, typer.Option(help="The most tokens that the load may have, prompts and answers together.", min=1)
    ] = 100_000,
    max_num_seqs: Annotated[int, typer.Option(help="The value that vLLM was started with.", min=1)] = 256,
    max_num_batched_tokens: Annotated[
        int, typer.Option(help="The value that vLLM was started with.", min=1)
    ] = 2048,
    kv_tokens: Annotated[
        int | None, typer.Option(help="Tokens that vLLM's KV cache holds. Default: from /metrics.", min=1)
    ] = None,
    vocab_size: VocabSize = 32_000,
    name: Annotated[str | None, typer.Option(help="The name of the profile. Default: model and engine.")] = None,
    out: Annotated[Path | None, typer.Option(help="Write the profile to this file, and a plot beside it.")] = None,
    json: Json = None,
    plot: Plot = None,
) -> None:
    """Measure a vLLM from here: round trip, TTFT by prompt length, TPOT by answers at a time. Fit its costs.

    The cloud should be idle otherwise. The load is one prompt at a time, then as many answers of 32 tokens at a
    time as --widths says (8), with prompts of 64 and 768 tokens. It is 52,000 tokens in all by default, and never
    more than --most-tokens. Prompts are random, so the prefix cache has no effect. Ctrl-C leaves no request
    running.
    """
    from pdd_lab.bench.cloud_bench import CloudBench, run_cloud
    from pdd_lab.bench.cloud_plan import CloudPlan, parse_numbers

    wanted = CloudBench(
        url=url,
        api_key=given_key(api_key, api_key_file),
        model=model,
        plan=CloudPlan(
            lengths=parse_numbers(lengths, "--lengths"),
            widths=parse_numbers(widths, "--widths"),
            reps=reps,
            most_tokens=most_tokens,
        ),
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        kv_tokens=kv_tokens,
        vocab_size=vocab_size,
        name=name,
    )
    run_cloud(wanted, out=out, json_path=json, plot=plot, console=new_console())
