"""The options of `pdd-device eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pdd_cli.options import Gguf, gguf_path, new_console

evaluation = typer.Typer(help="Measure on your own model and text.", no_args_is_help=True)

Text = Annotated[
    list[Path] | None,
    typer.Option(help="A document; can be repeated. Default: Python's reference.", dir_okay=False),
]
Cases = Annotated[int | None, typer.Option(help="Scored cases per task. Default: 100.", min=1)]
Lengths = Annotated[
    str | None, typer.Option(help="Lengths of the documents, in tokens. Default: 512:1536.", metavar="MIN:MAX")
]
Task = Annotated[
    list[str] | None, typer.Option(help="agreement, recall or answers; can be repeated. Default: all.")
]
First = Annotated[int | None, typer.Option(help="The number of the first case. Default: 0.", min=0)]
Jobs = Annotated[int | None, typer.Option(help="Processes that share the cases. Default: 1.", min=1)]
JobThreads = Annotated[
    int | None, typer.Option(help="CPU threads of all processes together. Default: all CPUs.", min=1)
]
Quick = Annotated[bool, typer.Option("--quick", help="Run a few short cases, to see if it works here.")]


@evaluation.command(name="refine")
def refine(
    gguf: Gguf = "demo",
    text: Text = None,
    cases: Cases = None,
    lengths: Lengths = None,
    ratios: Annotated[
        str | None, typer.Option(help="Shares of the prompt to keep, separated by commas.", metavar="0.1,0.25,...")
    ] = None,
    task: Task = None,
    refiner: Annotated[
        list[str] | None, typer.Option(help="A refiner to compare; can be repeated. Default: all.")
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="Depths of the layers whose attention counts.", metavar="0.47,0.57,...")
    ] = None,
    window: Annotated[
        int | None,
        typer.Option(help="How many of the prompt's last tokens have their attention captured at most."),
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="How the heads of a layer are combined.", metavar="max|mean")
    ] = None,
    first: First = None,
    jobs: Jobs = None,
    threads: JobThreads = None,
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help="The folder for the JSON and the PNG.", file_okay=False)] = Path(),
) -> None:
    """Measure how good answers stay with a refined prompt, for each refiner and share of tokens kept.

    Results are kept per case, so a run that was stopped continues.
    """
    from pdd_lab.evaluate.evaluation_settings import refine_settings
    from pdd_lab.evaluate.run import run_refine

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


@evaluation.command(name="kv")
def kv(
    gguf: Gguf = "demo",
    text: Text = None,
    cases: Cases = None,
    lengths: Lengths = None,
    way: Annotated[
        list[str] | None,
        typer.Option(
            help="k8v4, q8_0, q4_0, f16: the types on the wire; selected, oracle: a quarter of the cells. Can be "
            "repeated. Default: k8v4, q8_0 and q4_0."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Measure a device whose weights are quantised to this type, too.", metavar="Q4_K_M"),
    ] = None,
    ratios: Annotated[
        str | None, typer.Option(help="Shares of the prompt that refined prompts keep.", metavar="0.25,...")
    ] = None,
    task: Task = None,
    refiner: Annotated[
        list[str] | None,
        typer.Option(help="A refiner to compare with; can be repeated. Default: attention and lexical."),
    ] = None,
    first: First = None,
    jobs: Jobs = None,
    threads: JobThreads = None,
    quick: Quick = False,
    out: Annotated[Path, typer.Option(help="The folder for the JSON.", file_okay=False)] = Path(),
) -> None:
    """Measure how good answers stay with the cloud's KV cache, for each type it is sent in.

    llama.cpp's own cells stand for the cloud's. Refined prompts are measured beside them. Results are kept per
    case, so a run that was stopped continues.
    """
    from pdd_lab.evaluate.kv_run import run_kv
    from pdd_lab.evaluate.kv_settings import kv_settings

    settings = kv_settings(
        ways=way,
        device=device,
        refiners=refiner,
        ratios=ratios,
        gguf=gguf_path(gguf),
        texts=text,
        cases=cases,
        lengths=lengths,
        tasks=task,
        layers=None,
        window=None,
        heads=None,
        first=first,
        jobs=jobs,
        threads=threads,
        quick=quick,
    )
    run_kv(settings, out=out, console=new_console())
