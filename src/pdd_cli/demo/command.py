"""The options of `pdd-device demo`."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path  # noqa: TC003 - typer reads the annotations
from typing import Annotated

import typer

from pdd_cli.options import ApiKey, ApiKeyFile, Gguf, Json, Plot, gguf_path, given_key, new_console


class Profile(StrEnum):
    """Device profiles that the demo can be held to."""

    PHONE = "phone"
    NONE = "none"


def demo(
    json: Json = None,
    prompt_file: Annotated[
        Path | None,
        typer.Option(help="The document to ask about. Default: the demo's own.", exists=True, dir_okay=False),
    ] = None,
    question: Annotated[str | None, typer.Option(help="The question about the document.")] = None,
    max_tokens: Annotated[int, typer.Option(help="The longest answer, in tokens.", min=2)] = 288,
    budget: Annotated[
        str, typer.Option(help="Tokens that the cloud may decode before the device goes on.", metavar="auto|N")
    ] = "auto",
    rate: Annotated[
        str, typer.Option(help="Tokens per second at which the answer is shown.", metavar="auto|R")
    ] = "auto",
    device_profile: Annotated[
        Profile, typer.Option(help="Hold the device to the speed of this one; `none` does not.")
    ] = Profile.PHONE,
    model: Gguf = "demo",
    threads: Annotated[int, typer.Option(help="CPU threads of the device.", min=1)] = 1,
    url: Annotated[str | None, typer.Option(help="The URL of a running cloud. Default: start one.")] = None,
    api_key: ApiKey = None,
    api_key_file: ApiKeyFile = None,
    port: Annotated[int | None, typer.Option(help="The port of the cloud to start. Default: a free port.")] = None,
    link: Annotated[
        str,
        typer.Option(
            help="The link to emulate between device and cloud, in every way; `none` emulates none.",
            metavar="none|100mbit|100mbit/20ms",
        ),
    ] = "100mbit",
    plot: Plot = None,
) -> None:
    """Make one answer in several ways, and compare them.

    It is handed off, handed off with the prompt's KV cache, and made by the device alone and by the cloud alone.
    """
    from pdd_cli.demo.run import run_demo
    from pdd_cli.demo.scenario import DemoScenario
    from pdd_cli.link import Link

    scenario = DemoScenario(
        gguf=gguf_path(model),
        document=prompt_file,
        question=question,
        max_tokens=max_tokens,
        decode_budget=_budget(budget),
        rate=_rate(rate),
        profile=device_profile.value,
        threads=threads,
        link=None if link == "none" else Link.parse(link),
    )
    key = given_key(api_key, api_key_file)
    run_demo(scenario, url=url, api_key=key, port=port, json_path=json, plot=plot, console=new_console())


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
