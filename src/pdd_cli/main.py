"""The command ``pdd-device``."""

from __future__ import annotations

import math
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from pdd_cli.bench.command import benchmark
from pdd_cli.generate.command import generate
from pdd_cli.options import (
    ApiKey,
    ContextSize,
    DecodeBudget,
    Gguf,
    Json,
    Plot,
    Rate,
    Refine,
    Threads,
    gguf_path,
    new_console,
)
from pdd_cli.plan.command import plan
from pdd_cli.replay.command import replay
from pdd_core.errors import ConfigurationError, PDDError

app = typer.Typer(
    help="One LLM answer, two engines: it begins on vLLM in the cloud and ends on llama.cpp on the device.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

BAD_SETTING = 2
"""Exit code: nothing was done, because something has to be installed or set otherwise."""
FAILED = 1
INTERRUPTED = 130

evaluation = typer.Typer(help="Measure on your own model and text.", no_args_is_help=True)
app.add_typer(evaluation, name="eval")
app.command()(plan)
app.command()(generate)
app.command()(replay)
app.add_typer(benchmark, name="bench")


class Profile(StrEnum):
    """Device profiles that the demo can be held to."""

    PHONE = "phone"
    NONE = "none"


@app.command()
def model(
    gguf: Gguf = "demo",
    out: Annotated[
        Path | None, typer.Option(help="Copy the prepared files here, besides the cache.", file_okay=False)
    ] = None,
) -> None:
    """Make one set of weights for both engines: an F16 GGUF for llama.cpp, a float32 folder for vLLM."""
    from pdd_cli.demo_model import copy_to, prepare
    from pdd_cli.progress import ConsoleProgress

    console = new_console()
    prepared = prepare(gguf_path(gguf), progress=ConsoleProgress(console))
    if out is not None:
        prepared = copy_to(out, prepared)
    console.print(f"device  {prepared.gguf}", soft_wrap=True, highlight=False, markup=False)
    console.print(f"cloud   {prepared.vllm_dir}", soft_wrap=True, highlight=False, markup=False)


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def cloud(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="A model folder or name, or `demo`.", metavar="demo|MODEL")],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8000,
    api_key: Annotated[str | None, typer.Option(help="Clients must present it.", envvar="VLLM_API_KEY")] = None,
    only_print: Annotated[bool, typer.Option("--print", help="Only print the command.")] = False,
) -> None:
    """Start vLLM with the plugin. Flags that are not listed here go to `vllm serve`, and win over ours."""
    from pdd_cli.cloud import print_command, serve, server_of
    from pdd_cli.progress import ConsoleProgress

    console = new_console(stderr=only_print)
    server = server_of(
        model, host=host, port=port, api_key=api_key, flags=context.args, progress=ConsoleProgress(console)
    )
    if only_print:
        print_command(server.command, console)
    else:
        serve(server, console)


@app.command(name="serve")
def serve_command(
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
    from pdd_cli.serve import serve
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
    serve(
        ServeSettings.load(config, {name: flag for name, flag in flags.items() if flag is not None}), new_console()
    )


@app.command()
def doctor(
    url: Annotated[str | None, typer.Option(help="A cloud to check, such as http://host:8000/v1.")] = None,
    api_key: ApiKey = None,
    gguf: Annotated[
        str | None, typer.Option(help="A device model to check against the cloud.", metavar="demo|PATH")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the findings as JSON.")] = False,
) -> None:
    """Check this installation, and a cloud: what is missing, what would go wrong, and how to mend it."""
    from pdd_cli.doctor import report

    raise typer.Exit(report(url=url, api_key=api_key, gguf=gguf, as_json=json, console=new_console()))


@app.command()
def demo(
    json: Json = None,
    prompt_file: Annotated[
        Path | None, typer.Option(help="The document to ask about.", exists=True, dir_okay=False)
    ] = None,
    question: Annotated[str | None, typer.Option(help="What to ask about it.")] = None,
    max_tokens: Annotated[int, typer.Option(help="Longest answer.", min=2)] = 288,
    budget: Annotated[str, typer.Option(help="Tokens the cloud may decode.", metavar="auto|N")] = "auto",
    rate: Annotated[str, typer.Option(help="Tokens per second to show the answer at.", metavar="auto|R")] = "auto",
    device_profile: Annotated[Profile, typer.Option(help="Hold the device to this speed.")] = Profile.PHONE,
    model: Gguf = "demo",
    threads: Annotated[int, typer.Option(help="The device's CPU threads.", min=1)] = 1,
    url: Annotated[str | None, typer.Option(help="A running cloud, instead of starting one.")] = None,
    api_key: ApiKey = None,
    port: Annotated[int | None, typer.Option(help="Port of the cloud to start.  [default: a free one]")] = None,
    plot: Plot = None,
) -> None:
    """See one answer made in three ways: handed off, by the device alone, by the cloud alone."""
    from pdd_cli.demo import Scenario, run_demo

    scenario = Scenario(
        gguf=gguf_path(model),
        document=prompt_file,
        question=question,
        max_tokens=max_tokens,
        decode_budget=_budget(budget),
        rate=_rate(rate),
        profile=device_profile.value,
        threads=threads,
    )
    run_demo(scenario, url=url, api_key=api_key, port=port, json_path=json, plot=plot, console=new_console())


@evaluation.command(name="refine")
def eval_refine(
    gguf: Gguf = "demo",
    text: Annotated[
        list[Path] | None,
        typer.Option(help="A document; give more than one.  [default: Python's reference]", dir_okay=False),
    ] = None,
    cases: Annotated[int | None, typer.Option(help="Scored cases per task.  [default: 100]", min=1)] = None,
    lengths: Annotated[
        str | None, typer.Option(help="Tokens of the documents.  [default: 512:1536]", metavar="MIN:MAX")
    ] = None,
    ratios: Annotated[
        str | None, typer.Option(help="Shares of the prompt to keep, with commas.", metavar="0.1,0.25,...")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(help="agreement, recall or answers.  [default: all]")] = None,
    refiner: Annotated[list[str] | None, typer.Option(help="One to compare.  [default: all]")] = None,
    layers: Annotated[
        str | None, typer.Option(help="Depths of the layers whose attention counts.", metavar="0.47,0.57,...")
    ] = None,
    window: Annotated[int | None, typer.Option(help="How many of the prompt's last tokens are looked at.")] = None,
    heads: Annotated[
        str | None, typer.Option(help="How a layer's heads are made one.", metavar="max|mean")
    ] = None,
    first: Annotated[int | None, typer.Option(help="Number of the first case.  [default: 0]", min=0)] = None,
    jobs: Annotated[int | None, typer.Option(help="Processes that share the cases.  [default: 1]", min=1)] = None,
    threads: Annotated[
        int | None, typer.Option(help="CPU threads, of all processes together.  [default: all CPUs]", min=1)
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A few short cases: does it work here?")] = False,
    out: Annotated[Path, typer.Option(help="Folder for the JSON and the PNG.", file_okay=False)] = Path(),
) -> None:
    """Measure how good answers stay with a refined prompt, for each refiner and share of tokens kept.

    Results are kept per case: a run that was stopped goes on where it was.
    """
    from pdd_cli.evaluate.run import run_refine
    from pdd_cli.evaluate.settings import refine_settings

    settings = refine_settings(
        gguf=gguf_path(gguf),
        texts=text,
        cases=cases,
        lengths=lengths,
        ratios=ratios,
        tasks=task,
        refiners=refiner,
        layers=layers,
        window=window,
        heads=heads,
        first=first,
        jobs=jobs,
        threads=threads,
        quick=quick,
    )
    run_refine(settings, out=out, console=new_console())


def _budget(text: str) -> int | None:
    if text == "auto":
        return None
    if not text.isdigit() or int(text) < 1:
        raise typer.BadParameter(f"{text!r} is neither auto nor a number of tokens", param_hint="--budget")
    return int(text)


def _rate(text: str) -> float | None:
    if text == "auto":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < math.inf:
        raise typer.BadParameter(
            f"{text!r} is neither auto nor a number of tokens per second", param_hint="--rate"
        )
    return rate


def main() -> None:
    """Run the command; errors of ours become one message and an exit code, never a traceback."""
    try:
        app()
    except PDDError as error:
        print(f"pdd-device: {error}", file=sys.stderr)  # noqa: T201
        sys.exit(BAD_SETTING if isinstance(error, ConfigurationError) else FAILED)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    main()
