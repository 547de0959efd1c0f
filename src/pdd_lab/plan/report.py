"""A plan on the terminal: one table, and a sentence or two that say what it means."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from rich.console import Console

_LEGEND = (
    "h/c/d: handed off, cloud only, device only. N: decode budget, median and 90th percentile if they differ. "
    "kept: share of the prompt that devices read. tokens: how many times fewer the cloud decodes "
    "than with plain serving. req/s: of one instance, and over plain serving's. "
    "TTFT: median and 99th percentile."
)
_KV_LEGEND = "KV: requests whose devices load the cloud's KV cache. MB: of it, 10^6 bytes per request."
_COLUMNS = ("policy", "h/c/d %", "N 50/90", "kept", "tokens", "req/s", "stalls", "TTFT ms", "QoE")


def show(figures: Mapping[str, Any], policy: str, console: Console) -> None:
    """Print the comparison, the line of `policy` marked."""
    from rich.table import Table

    trace, device, cloud = figures["trace"], figures["device"], figures["cloud"]
    console.print(
        f"[bold]{trace['name']}[/bold]: {trace['requests']:,} requests at {trace['requests_per_s'] or 0:.3g}/s, "
        f"{trace['prompt_tokens_mean']:.0f} prompt and {trace['output_tokens_mean']:.0f} output tokens on average"
    )
    if trace["read_as"]:
        console.print(f"read as {trace['read_as']}", highlight=False, markup=False)
    prefill, decode = (device[name][0]["value"] for name in ("prefill_tps", "decode_tps"))
    console.print(
        f"device {device['name']}: {prefill:g} tok/s prefill, {decode:g} tok/s decode, "
        f"{device['spread']:.0%} spread",
        highlight=False,
    )
    console.print(
        f"cloud {cloud['name']}: {1000 * cloud['rtt_s']:g} ms round trip, {1000 * cloud['jitter_s']:g} ms jitter; "
        f"answers are shown at {figures['rate']:g} tok/s",
        highlight=False,
    )
    link = figures["link"]
    if link is not None:
        console.print(
            f"link: {link['bytes_per_s'] * 8 / 1e6:g} Mbit/s, {link['spread']:.0%} spread; "
            f"a cell of the KV cache has {link['cell_bytes']:,} bytes, "
            f"so {link['bytes_per_s'] / link['cell_bytes']:.0f} arrive per second",
            highlight=False,
        )
    table = Table(box=None, padding=(0, 1, 0, 0), pad_edge=False, header_style="dim")
    columns = _COLUMNS if link is None else (*_COLUMNS, "KV %", "MB")
    for column in columns:
        if column == "policy":  # where there is no room, a name is broken, never a figure
            table.add_column(column, overflow="fold")
        else:
            table.add_column(column, justify="right", no_wrap=True)
    for name, row in figures["policies"].items():
        cells = _cells(name, row)
        if link is not None:
            cells += [f"{100 * row['kv_share']:.0f}", f"{row['kv_bytes'] / 1e6 / trace['requests']:.3g}"]
        table.add_row(*cells, style="bold" if name == policy else None)
    console.print()
    console.print(table)
    console.print()
    legend = _LEGEND if link is None else f"{_LEGEND} {_KV_LEGEND}"
    console.print(f"[dim]{legend}[/dim]", highlight=False)
    for line in sentences(figures, policy):
        console.print(line, highlight=False)


def sentences(figures: Mapping[str, Any], policy: str) -> Iterator[str]:
    """Yield what the figures mean. Tokens and requests per second are always given together."""
    chosen, plain = figures["policies"][policy], figures["policies"]["plain"]
    ceiling = figures["ceiling_requests_per_s"]
    most, requests = figures["goals"]["stall_probability"], figures["trace"]["requests"]
    for name in dict.fromkeys((policy, "best_fixed")):
        row = figures["policies"][name]
        if not row["keeps_stall_limit"]:
            yield f"{name}: {row['stalled_share']:.2%} of its answers stall, of {most:.2%} that may."
    if refused := {name: row["refused"] for name, row in figures["policies"].items() if row["refused"]}:
        yield (
            f"Of {requests:,} requests the cloud's KV cache cannot hold some, and they are left out: "
            f"{', '.join(f'{name} {count:,}' for name, count in refused.items())}."
        )
    if chosen["requests_per_s"] is None:
        yield f"{policy}: the devices make every answer; the cloud has nothing to do."
        return
    tokens = "no" if not chosen["decode_ratio"] else f"{chosen['decode_ratio']:.3g} times fewer"
    yield (
        f"{policy}: {tokens} decode tokens in the cloud than with plain serving, and "
        f"{chosen['requests_per_s_ratio']:.2f} times the requests per second of one instance "
        f"({chosen['requests_per_s']:.3g} against {plain['requests_per_s']:.3g})."
    )
    if figures["link"] is not None:
        yield _bytes(
            policy, chosen["kv_bytes"], plain["cloud_decode_tokens"] - chosen["cloud_decode_tokens"], figures
        )
    yield (
        f"Prefill alone (a budget of 1 for every request) allows {ceiling:.3g} requests per second, "
        f"{ceiling / plain['requests_per_s']:.2f} times plain serving: the ceiling where every request "
        "goes to the cloud. Only what devices answer alone lifts it."
    )


def _bytes(policy: str, kv_bytes: float, saved: float, figures: Mapping[str, Any]) -> str:
    price = figures["link"]["price_per_gb"]
    cost = (
        f", which cost {price * kv_bytes / 1e9:.3g} at {price:g} per GB" if price else ", which cost nothing here"
    )
    per_token = (
        f", {kv_bytes / saved / 1e3:.3g} kB for each token that the cloud need not decode" if saved > 0 else ""
    )
    return f"{policy}: {kv_bytes / 1e9:.3g} GB of KV cache arrive on devices{cost}{per_token}."


def _cells(name: str, row: Mapping[str, Any]) -> list[str]:
    low, high = row["decode_budget_p50"], row["decode_budget_p90"]
    verdicts = (row[f"{verdict}_share"] for verdict in ("handed_off", "cloud_only", "device_only"))
    speed = row["requests_per_s"]
    return [
        name,
        "/".join(f"{100 * share:.0f}" for share in verdicts),
        "" if low is None else f"{low:.0f}" if low == high else f"{low:.0f}/{high:.0f}",
        "" if row["kept_share"] is None else f"{row['kept_share']:.0%}",
        "none" if row["decode_ratio"] is None else f"{row['decode_ratio']:.1f}x",
        "any" if speed is None else f"{speed:.1f} {row['requests_per_s_ratio']:.2f}x",
        f"{row['stalled_share']:.2%}",
        f"{row['ttft_p50_ms']:.0f}/{row['ttft_p99_ms']:.0f}",
        f"{row['qoe_mean']:.3f}",
    ]
