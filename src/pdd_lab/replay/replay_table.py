"""A replay's figures on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import Console

_PERCENTILES = ("p50", "p99", "max")


def print_figures(console: Console, report: Mapping[str, Any]) -> None:
    """Print the figures of `report`, and what a reader must know to judge them."""
    found = report["figures"]
    heading = f"{report['trace']['name']} at {report['speedup']:g} times its speed"
    console.print(heading, style="bold", highlight=False, markup=False, soft_wrap=True)
    if report["trace"]["read_as"]:
        console.print(f"read as {report['trace']['read_as']}", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", *_PERCENTILES):
        table.add_column(column, justify="left" if not column else "right")
    table.add_row("TTFT, ms", *_milliseconds(found["ttft_s"]))
    table.add_row("gap between tokens, ms", *_milliseconds(found["gap_s"]))
    if found["late"]["max"] is not None:
        table.add_row("sent late by, ms", *_milliseconds(found["late"]))
    console.print(table)
    for line in lines(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def lines(report: Mapping[str, Any]) -> list[str]:
    """Return the rest of the report, one sentence a line."""
    found, reader = report["figures"], report["figures"]["qoe"]
    counts, tokens, stalls = found["requests"], found["tokens"], found["stalls"]
    made = [
        f"{counts['completed']} of {counts['due']} requests completed in {found['seconds']:.1f} s: "
        f"{_number(found['requests_per_s'], '.2f')} requests/s, "
        f"{_number(found['output_tokens_per_s'], '.1f')} tokens/s",
        f"Tokens: {tokens['prompt']:,} of prompts; {tokens['cloud']:,} answered by the cloud, "
        f"{tokens['device']:,} by the device"
        + "".join(f"; {count} {mode.replace('_', ' ')}" for mode, count in found["modes"].items()),
        f"Stalled answers: {stalls['answers']} ({_number(stalls['share'], '.1%')}); "
        f"QoE {_number(reader['mean'], '.3f')} in the mean, {_number(reader['p1'], '.3f')} at worst but 1 %, "
        f"for who reads {reader['rate']:g} tokens/s from {reader['ttft_s']:g} s on",
    ]
    left_out = {
        "too_long": "too long for the server's context, not sent",
        "unfinished": "not finished when it was interrupted",
        "failed": "failed",
    }
    made += [f"{counts[name]} {what}" for name, what in left_out.items() if counts[name]]
    made += [f"    {count} times: {error}" for error, count in found["errors"].items()]
    if found["late"]["requests"]:
        made.append(
            f"{found['late']['requests']} were sent late, because --concurrency or this machine was the limit; "
            "their latencies count from when they were due"
        )
    if not report.get("forced", True):
        made.append("The server does not take ignore_eos and min_tokens: answers end where the model ends them")
    return made


def _milliseconds(values: Mapping[str, float | None]) -> list[str]:
    return [
        _number(None if values[name] is None else 1000 * (values[name] or 0.0), ".0f") for name in _PERCENTILES
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
