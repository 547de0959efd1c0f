"""Runs the checks that apply and shows what they found."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import anyio

from pdd_cli import host
from pdd_cli.doctor.findings import Level
from pdd_cli.doctor.installed import installed
from pdd_cli.doctor.plugin import plugin
from pdd_cli.doctor.server import server

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from pdd_cli.doctor.findings import Finding

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


def report(*, url: str | None, api_key: str | None, gguf: str | None, as_json: bool, console: Console) -> int:
    """Check, print, and return the exit code: 1 if a check failed."""
    findings = anyio.run(_findings, url, api_key, gguf)
    failed = any(finding.level is Level.FAIL for finding in findings)
    if as_json:
        record = {"ok": not failed, "findings": [asdict(finding) for finding in findings]}
        print(json.dumps(record, indent=1))  # noqa: T201 - rich would wrap it
    else:
        _print(findings, console)
    return int(failed)


async def _findings(url: str | None, api_key: str | None, gguf: str | None) -> list[Finding]:
    findings = list(installed())
    if host.vllm_distribution() is not None:
        findings += plugin(os.environ)
    return findings + [finding async for finding in server(url, api_key, gguf)]


def _print(findings: Sequence[Finding], console: Console) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False)
    for column in ("check", "", "found", "fix"):
        table.add_column(column, overflow="fold")
    for finding in findings:
        level = Text(finding.level, style=_STYLES[finding.level])
        table.add_row(Text(finding.check), level, Text(finding.detail), Text(finding.fix, style="bold"))
    console.print(table)
