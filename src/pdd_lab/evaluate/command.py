"""The options of `pdd-device eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pdd_cli.options import Gguf, gguf_path, new_console

evaluation = typer.Typer(help="Measure on your own model and text.", no_args_is_help=True)


@evaluation.command(name="refine")
def refine(
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
