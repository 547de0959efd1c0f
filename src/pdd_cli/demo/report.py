"""The demo's header and its table, on the console."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from pdd_cli.demo.live_display import STYLES
from pdd_cli.demo.verdict import verdict
from pdd_core.timeline import Source

if TYPE_CHECKING:
    from rich.console import Console

    from pdd_cli.demo.facts import Facts
    from pdd_cli.demo.ways import Outcomes
    from pdd_llamacpp_adapter import Outcome

_COLUMNS = (
    "mode",
    "TTFT s",
    "mean gap ms",
    "max gap ms",
    "cloud tokens",
    "device tokens",
    "budget",
    "took over s",
    "KV MB",
)


def print_header(console: Console, facts: Facts) -> None:
    """Disclose the conditions of the run before anything of it is shown."""
    versions = ", ".join(f"{name} {version}" for name, version in facts.versions.items() if name != "cloud")
    measured = "" if facts.rate_set_by == "user" else ": measured, what the cloud keeps up beside the device"
    lines = {
        "model": f"{facts.model}, the same weights on both sides; greedy, "
        f"frequency penalty {facts.frequency_penalty}, at most {facts.max_tokens} tokens",
        "prompt": f"{facts.prompt_tokens:,} tokens: {facts.document}, then: {facts.question}",
        "device": _device(facts),
        "engines": f"{facts.versions['cloud']}, {versions}; device {facts.threads} of {facts.cpus} CPUs",
        "link": _link(facts),
        "KV cache": _kv(facts),
        "shown at": f"{facts.rate:g} tokens/s in every way{measured}",
        "budget": _budget(facts),
    }
    console.print()
    for name, line in lines.items():
        console.print(Text(f"{name:<9}", style="bold").append(line, style="not bold"), soft_wrap=True)
    legend = Text("legend   ", style="bold")
    for source in Source:
        legend.append(f"token of the {source}  ", style=f"not bold {STYLES[source]}")
    console.print(legend)
    console.print()


def _device(facts: Facts) -> str:
    profile = facts.device_profile
    if profile is None:
        return f"as fast as it is: {facts.prefill_tps:.0f} tok/s prefill, measured alone"
    return (
        f"profile {profile.name}: held to {profile.prefill_tps:g} tok/s prefill and {profile.decode_tps:g} tok/s "
        "decode by waiting"
    )


def _link(facts: Facts) -> str:
    if facts.link is None:
        return "as it is; none is emulated"
    return f"{facts.link}, emulated by a proxy on this machine, in every way"


def _kv(facts: Facts) -> str:
    if facts.kv is None:
        return f"not handed over, so there is one way less: {facts.no_kv}"
    whole = facts.kv.cell_bytes * facts.prompt_tokens / 1e6
    types = f"keys {facts.kv.key_type}, values {facts.kv.value_type}"
    return f"{whole:.1f} MB for the whole prompt ({types}), in one way only; the rest is read on the device"


def _budget(facts: Facts) -> str:
    with_kv = "" if facts.kv is None else f", {facts.kv.decode_budget} with the KV cache"
    return f"{facts.decode_budget} tokens may be decoded by the cloud{with_kv} ({facts.decode_budget_set_by})"


def print_report(console: Console, facts: Facts, outcomes: Outcomes) -> None:
    """Print the figures of all ways, and what they mean."""
    table = Table(title="Timeline", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in _COLUMNS:
        is_mode = column == "mode"
        table.add_column(column, justify="left" if is_mode else "right", no_wrap=is_mode)
    for way, outcome in outcomes.items():
        table.add_row(way, *_row(outcome))
    console.print(table)
    console.print(verdict(facts, outcomes), style="bold", highlight=False, markup=False)


def _row(outcome: Outcome) -> list[str]:
    timeline = outcome.timeline
    budget = outcome.decode_budget
    return [
        _seconds(timeline.ttft),
        _milliseconds(timeline.tpot_mean),
        _milliseconds(timeline.tpot_max),
        str(timeline.count(Source.CLOUD)),
        str(timeline.count(Source.DEVICE)),
        "-" if budget is None else str(budget),
        _seconds(outcome.took_over_at),
        "-" if outcome.kv is None else f"{outcome.kv.bytes / 1e6:.1f}",
    ]


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _milliseconds(value: float | None) -> str:
    return "-" if value is None else f"{value * 1000:.0f}"
