"""The options of `pdd-device demo`."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from pdd_cli.options import ApiKey, Gguf, Json, Plot, gguf_path, new_console


class Profile(StrEnum):
    """Device profiles that the demo can be held to."""

    PHONE = "phone"
    NONE = "none"


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
    from pdd_cli.demo.run import run_demo
    from pdd_cli.demo.scenario import DemoScenario

    scenario = DemoScenario(
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
