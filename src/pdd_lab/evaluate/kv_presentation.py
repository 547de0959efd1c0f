"""The figures of an evaluation of KV handover as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_lab.evaluate.kv_ways import SELECTIONS, SHARE

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.table import Table


def kv_tables(report: Mapping[str, Any]) -> list[Table]:
    """Return the tables: one of all ways with the cloud's weights, and one of a device with other ones."""
    device = report["settings"]["device"]
    ways = report["ways"]
    of_device = [way for way in ways if device is not None and way["way"].startswith(f"{device} ")]
    same = [way for way in ways if way not in of_device]
    tables = [_table("The device has the cloud's weights", report, same)]
    if of_device:
        tables.append(_table(f"The device has the same weights in {device}", report, of_device))
    return tables


def _table(title: str, report: Mapping[str, Any], ways: list[Mapping[str, Any]]) -> Table:
    from rich.table import Table

    scored = {task: count for task, count in report["scored"].items() if count}
    cases = ", ".join(f"{count} of {task}" for task, count in scored.items())
    table = Table(
        title=f"{title}: what is right with the full prompt stays right (%); cases: {cases}",
        title_justify="left",
        title_style="bold",
    )
    table.add_column("")
    table.add_column("bytes/ token", justify="right")
    for task in scored:
        table.add_column(task, justify="right")
    table.add_column("guard fires", justify="right")
    table.add_column("excess", justify="right")
    for way in ways:
        table.add_row(*_row(way, scored))
    return table


def _row(way: Mapping[str, Any], tasks: Mapping[str, int]) -> list[str]:
    guard = way["guard"][-1]  # with as many of the cloud's tokens as it looks at
    return [
        _name(way),
        "" if way["bytes_per_token"] is None else f"{way['bytes_per_token']:,}",
        *(_percent(way["tasks"][task]["score"]) for task in tasks),
        f"{guard['fired']} of {guard['share']['n']}",
        f"{guard['mean']:.2f}",
    ]


def _name(way: Mapping[str, Any]) -> str:
    """Return the name of a row; without the device's type, which stands above its table."""
    name = str(way["way"]).split()[-1]
    if name in SELECTIONS:
        return f"{name} cells {SHARE:g}"
    return name if way["ratio"] == 1 else f"refined {way['ratio']:g}, {name}"


def _percent(score: Mapping[str, float]) -> str:
    return f"{100 * score['mean']:.1f} ({100 * score['low']:.0f}-{100 * score['high']:.0f})"
