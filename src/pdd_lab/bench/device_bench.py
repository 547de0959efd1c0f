"""``pdd-device bench device``: how fast this machine's llama.cpp reads and writes."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from pdd_cli import host
from pdd_cli.cache import published
from pdd_cli.cloud import ended_by_sigterm
from pdd_cli.demo_model import device_gguf, model_name
from pdd_cli.extras import require
from pdd_cli.plots.style import check_picture
from pdd_cli.progress import ConsoleProgress
from pdd_core.llama_params import LlamaParams
from pdd_lab.bench.device_figures import Measured, as_json
from pdd_lab.bench.device_pass import DevicePlan, one_pass, random_ids
from pdd_lab.bench.machine import conditions, cpu_name
from pdd_lab.bench.speed_plots import draw_device

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from pdd_cli.progress import Step
    from pdd_lab.bench.device_figures import Rate

SCHEMA = 1
"""Of the JSON file."""
_WARM_UP_TOKENS = 64
_QUICK = (256, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceBench:
    """One measurement."""

    gguf: Path | None = None
    """None is the demo model."""
    threads: tuple[int, ...] = ()
    """Empty: 1, 2, 4 and so on up to all CPUs."""
    longest: int = 2048
    """Tokens in the context up to which it is measured."""
    n_ctx: int = 4096
    """Tokens of context that the device will serve with."""
    reps: int = 5
    quick: bool = False
    flash_attn: bool = False
    name: str | None = None

    def plan(self) -> DevicePlan:
        """Return what is to be measured.

        Raises:
            ConfigurationError: a number is out of its range.
        """
        longest, reps = _QUICK if self.quick else (self.longest, self.reps)
        return DevicePlan.up_to(min(longest, self.n_ctx), threads=self.threads or _powers(), reps=reps)


def run_device(
    wanted: DeviceBench, *, out: Path | None, json_path: Path | None, plot: Path | None, console: Console
) -> None:
    """Measure, print the table, and write the profile `out`, the figures `json_path` and the picture `plot`.

    Ctrl-C prints what the complete passes have shown, and writes nothing.

    Raises:
        PDDError: something is not installed, or the model cannot be read.
    """
    require("device", need="pdd-device bench device")
    check_picture(plot)
    plan = wanted.plan()
    progress = ConsoleProgress(console)
    gguf = wanted.gguf or device_gguf(progress=progress)
    measured = Measured()
    with ended_by_sigterm():
        try:
            with progress(f"Measuring {gguf.name}") as step:
                _measure(gguf, wanted, plan, measured, step)
        except KeyboardInterrupt:
            if measured.passes:
                console.print(f"Interrupted after {len(measured.passes)} passes", style="yellow")
                print_rates(console, measured)
            raise
    print_rates(console, measured)
    chosen = measured.fastest()
    profile = measured.profile(
        chosen,
        name=wanted.name or f"{cpu_name()}, {chosen} {'thread' if chosen == 1 else 'threads'}",
        model=model_name(wanted.gguf),
        n_ctx=wanted.n_ctx,
    )
    if json_path is not None:
        with published(json_path) as draft:
            report = record(wanted, plan, measured, gguf, profile.model_dump(mode="json"))
            draft.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if out is not None:
        with published(out) as draft:
            profile.save(draft)
    picture = plot or (out and out.with_suffix(".png"))
    if picture is not None:
        draw_device(measured.rates(), picture, title=f"{profile.model} on {cpu_name()}, llama.cpp")
    if out is not None:
        spoken = f"Profile, with {chosen} of {host.cpu_count()} CPUs as threads: {out}"
        console.print(spoken, highlight=False, markup=False, soft_wrap=True)
    for what, path in (("Figures", json_path), ("Picture", picture)):
        if path is not None:
            console.print(f"{what}: {path}", highlight=False, markup=False, soft_wrap=True)


def _measure(gguf: Path, wanted: DeviceBench, plan: DevicePlan, measured: Measured, step: Step) -> None:
    from pdd_llamacpp_adapter.engine.context import LlamaContext
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

    # with one thread none is tried: each number gets passes of its own
    context = LlamaContext(gguf, LlamaParams.of(n_ctx=plan.room, threads=1, flash_attn=wanted.flash_attn))
    try:
        ids = random_ids(Vocabulary(context.model).size, plan.room)
        context.sequences[0].decode(ids[:_WARM_UP_TOKENS], want_logits=True)  # the first call pages the weights in
        passes, begun = list(plan.order()), time.monotonic()
        for number, (_, threads) in enumerate(passes):
            left = (time.monotonic() - begun) / number * (len(passes) - number) if number else None
            when = "" if left is None else f", about {left:.0f} s left"
            step.say(f"pass {number + 1} of {len(passes)}, {threads} threads{when}")
            context.use_threads(threads)
            measured.add(threads, one_pass(context.sequences[0], plan, ids))
    finally:
        context.close()


def print_rates(console: Console, measured: Measured) -> None:
    """Print the medians: prefill and decode over length, then batches over their size."""
    rates = measured.rates()
    threads = sorted({one.threads for one in rates})
    for kinds, first in ((("prefill", "decode"), "tokens in context"), (("batch",), "tokens at once")):
        table = Table(title="tokens per second, median", title_justify="left", box=SIMPLE_HEAD)
        table.add_column(first, justify="right")
        for kind in kinds:
            for count in threads:
                table.add_column(f"{kind}\n{count} thr.", justify="right")
        keys = sorted({_key(one) for one in rates if one.kind in kinds})
        for key in keys:
            cells = [_cell(rates, kind, count, key) for kind in kinds for count in threads]
            table.add_row(f"{key:g}", *cells)
        if keys:
            console.print(table)


def _key(one: Rate) -> float:
    return one.tokens if one.kind == "batch" else one.at


def _cell(rates: list[Rate], kind: str, threads: int, key: float) -> str:
    found = [one for one in rates if (one.kind, one.threads, _key(one)) == (kind, threads, key)]
    return f"{found[0].median:.0f}" if found else ""


def _powers() -> tuple[int, ...]:
    cpus = host.cpu_count()
    return tuple(dict.fromkeys([*(1 << bit for bit in range(cpus.bit_length()) if 1 << bit <= cpus), cpus]))


def record(
    wanted: DeviceBench, plan: DevicePlan, measured: Measured, gguf: Path, profile: dict[str, Any]
) -> dict[str, Any]:
    """Return the conditions, all rates and the profile, ready for JSON."""
    return {
        "schema": SCHEMA,
        "kind": "device",
        **conditions("llama-cpp-python"),
        "model": {"file": gguf.name, "bytes": gguf.stat().st_size},
        "reps": plan.reps,
        "flash_attn": wanted.flash_attn,
        "rates": as_json(measured.rates()),
        "spread": {str(count): measured.spread(count) for count in plan.threads},
        "profile": profile,
    }
