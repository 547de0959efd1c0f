"""Handing over a KV cache, as the command line shows it: whether both ends can, and how far it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_core.kv.geometry import KVGeometry

if TYPE_CHECKING:
    from pdd_core.handoff import CloudInfo
    from pdd_llamacpp_adapter import DeviceEngine, Outcome


_NOT_YET = "too_late"
"""What an answer says that is not over: its cells would come too late if it were."""


def cells_of(info: CloudInfo, engine: DeviceEngine) -> KVGeometry | str:
    """Return what the cells look like that `engine` would get, or why it gets none."""
    match info.kv:
        case None:
            return "the plugin in the cloud does not know how to"
        case KVGeometry() as geometry:
            return engine.kv.differs_from(geometry) or geometry
        case none:
            return none.message


def cells_underway(outcome: Outcome, cell_bytes: int) -> str:
    """Return how many of the prompt's cells have come so far; nothing where none are asked for."""
    report = outcome.kv
    if report is None or report.reason not in (None, _NOT_YET):
        return ""
    wanted = max(0, outcome.prompt_tokens - outcome.reused_tokens - 1)
    return f"cells {min(report.bytes // cell_bytes, wanted):,}/{wanted:,}"


def cells_summary(outcome: Outcome) -> str:
    """Return what came of the cells: how many, their bytes, and where they met the device's own reading.

    Nothing where none were asked for.
    """
    report = outcome.kv
    if report is None:
        return ""
    came = f"{report.bytes / 1e6:.1f} MB"
    if not report.cells:
        return f"no KV cache: {report.reason or 'too late'}" + (f" ({came})" if report.bytes else "")
    behind = outcome.prompt_tokens - 1  # the last token is the device's to process
    met = f"met at {behind - report.cells:,}"
    return f"KV cache {report.cells:,}/{behind:,} cells, {came} in {report.seconds:.2f} s, {met}"
