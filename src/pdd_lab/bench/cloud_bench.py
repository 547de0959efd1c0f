"""``pdd-device bench cloud``: what a step of a cloud's engine costs, and how far away it is."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
from rich.box import SIMPLE_HEAD
from rich.table import Table

from pdd_cli.cache import published
from pdd_cli.cloud import ended_by_sigterm
from pdd_cli.plots.style import check_picture
from pdd_cli.progress import ConsoleProgress
from pdd_cli.urls import openai_base_url
from pdd_core.errors import ConfigurationError
from pdd_core.planner.profiles import MeasuredCloud
from pdd_lab.bench.cloud_fit import StepCost, fit, medians_of_answers, medians_of_prompts
from pdd_lab.bench.cloud_measure import CloudMeasured, measure
from pdd_lab.bench.cloud_plan import CloudPlan
from pdd_lab.bench.machine import conditions
from pdd_lab.bench.speed_plots import draw_cloud
from pdd_lab.load.measuring_client import LoadClient
from pdd_lab.load.random_prompts import VOCAB_SIZE, Prompts

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from pdd_cli.progress import Step
    from pdd_lab.load.measuring_client import ServedModel

SCHEMA = 1
"""Of the JSON file."""
_CACHE_INFO = re.compile(r"^vllm:cache_config_info\{(.*)\}", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class CloudBench:
    """One measurement."""

    url: str
    api_key: str | None = None
    model: str | None = None
    plan: CloudPlan = field(default_factory=CloudPlan)
    max_num_seqs: int = 256
    """As the server was started; it does not tell."""
    max_num_batched_tokens: int = 2048
    """As the server was started; it does not tell."""
    kv_tokens: int | None = None
    """Tokens that its KV cache holds; None reads them from ``/metrics``."""
    vocab_size: int = VOCAB_SIZE
    name: str | None = None


@dataclass(slots=True)
class _Found:
    """What the server said of itself."""

    served: ServedModel | None = None
    kv_tokens: int = 0
    block_size: int = 16
    plan: CloudPlan | None = None


def run_cloud(
    wanted: CloudBench, *, out: Path | None, json_path: Path | None, plot: Path | None, console: Console
) -> None:
    """Measure, print the tables, and write the profile `out`, the figures `json_path` and the picture `plot`.

    Ctrl-C stops every request, and writes nothing.

    Raises:
        PDDError: something is not installed, the server cannot be measured, or a request failed.
    """
    check_picture(plot)
    measured, found = CloudMeasured(), _Found()
    with ended_by_sigterm(), ConsoleProgress(console)(f"Measuring {wanted.url}") as step:
        anyio.run(_measure, wanted, measured, found, step)
    assert found.served is not None  # noqa: S101 - `_measure` has returned
    cost = fit(measured, most_batched=wanted.max_num_batched_tokens)
    profile = _profile(wanted, found, found.served, measured, cost)
    print_cloud(console, measured, cost, profile)
    if json_path is not None:
        with published(json_path) as draft:
            report = record(wanted, found, measured, cost, profile)
            draft.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if out is not None:
        with published(out) as draft:
            profile.save(draft)
    picture = plot or (out and out.with_suffix(".png"))
    if picture is not None:
        draw_cloud(measured, cost, wanted.max_num_batched_tokens, picture, title=profile.name)
    for what, path in (("Profile", out), ("Figures", json_path), ("Picture", picture)):
        if path is not None:
            console.print(f"{what}: {path}", highlight=False, markup=False, soft_wrap=True)


async def _measure(wanted: CloudBench, measured: CloudMeasured, found: _Found, step: Step) -> None:
    prompts = Prompts(vocab_size=wanted.vocab_size)
    async with LoadClient(openai_base_url(wanted.url), api_key=wanted.api_key, model=wanted.model) as client:
        found.served = await client.served()
        found.plan = wanted.plan.within(found.served.max_model_len)
        kv_tokens, found.block_size = cache_config(await client.metrics())
        found.kv_tokens = wanted.kv_tokens or kv_tokens or 0
        if not found.kv_tokens:
            raise ConfigurationError(
                "the server's /metrics do not tell how much its KV cache holds: give --kv-tokens"
            )
        await client.probe(prompts.random(8, 0))
        if not client.forces:
            raise ConfigurationError(
                "the server does not take ignore_eos and min_tokens, so its answers have no set length: "
                "measure a vLLM"
            )
        await measure(client, found.plan, prompts, measured, say=step.say)


def cache_config(metrics: str) -> tuple[int | None, int]:
    """Return what vLLM's ``/metrics`` tell of the KV cache: its tokens, None where they do not, and block size."""
    line = _CACHE_INFO.search(metrics)
    labels = dict(re.findall(r'(\w+)="([^"]*)"', line[1])) if line else {}
    block, blocks = labels.get("block_size", ""), labels.get("num_gpu_blocks", "")
    size = int(block) if block.isdecimal() else 16
    return (int(blocks) * size if blocks.isdecimal() else None), size


def _profile(
    wanted: CloudBench, found: _Found, served: ServedModel, measured: CloudMeasured, cost: StepCost
) -> MeasuredCloud:
    info = served.info or {}
    engine = info.get("engine") or "a server"
    return MeasuredCloud(
        name=wanted.name or f"{served.model} on {engine}",
        model=served.model,
        base_s=_short(cost.base_s),
        per_prefill_token_s=_short(cost.per_prefill_token_s),
        per_sequence_s=_short(cost.per_sequence_s),
        per_context_token_s=_short(cost.per_context_token_s),
        per_request_s=_short(cost.per_request_s),
        per_attended_token_s=_short(cost.per_attended_token_s),
        kv_tokens=found.kv_tokens,
        max_num_seqs=wanted.max_num_seqs,
        max_num_batched_tokens=wanted.max_num_batched_tokens,
        block_size=found.block_size,
        rtt_s=_short(measured.rtt_s),
        jitter_s=_short(measured.jitter_s),
        refines=info.get("refinement", "off") != "off",
    )


def print_cloud(console: Console, measured: CloudMeasured, cost: StepCost, profile: MeasuredCloud) -> None:
    """Print what was measured, each beside what the fitted costs say."""
    prefill = Table(title="One prompt on an idle server", title_justify="left", box=SIMPLE_HEAD)
    for column in ("tokens", "TTFT ms", "fitted ms", "tokens/s"):
        prefill.add_column(column, justify="right")
    for prompt in medians_of_prompts(measured.prefill):
        fitted = cost.prefill_s(prompt.length, profile.max_num_batched_tokens) + measured.rtt_s
        speed = prompt.length / prompt.seconds
        prefill.add_row(
            f"{prompt.length:,}", f"{1000 * prompt.seconds:.1f}", f"{1000 * fitted:.1f}", f"{speed:,.0f}"
        )
    decode = Table(title="Answers at a time", title_justify="left", box=SIMPLE_HEAD)
    for column in ("answers", "prompt tokens", "TPOT ms", "fitted ms", "tokens/s in all"):
        decode.add_column(column, justify="right")
    for group in medians_of_answers(measured.decode):
        fitted = cost.decode_s(group.width, group.context_tokens)
        decode.add_row(
            str(group.width),
            f"{group.prompt_tokens:,}",
            f"{1000 * group.tpot_s:.1f}",
            f"{1000 * fitted:.1f}",
            f"{group.width / group.tpot_s:,.0f}",
        )
    console.print(prefill)
    console.print(decode)
    lines = [
        f"Round trip: {1000 * measured.rtt_s:.2f} ms, jitter {1000 * measured.jitter_s:.2f} ms "
        f"({len(measured.round_trips)} times /health, the server's own work included)",
        f"One step: {1000 * cost.base_s:.3g} ms + {1e6 * cost.per_prefill_token_s:.3g} us per prefilled token "
        f"and {1e9 * cost.per_attended_token_s:.3g} ns per token that it looks at + "
        f"{1000 * cost.per_sequence_s:.3g} ms per answer + {1e6 * cost.per_context_token_s:.3g} us per token "
        f"held; {1000 * cost.per_request_s:.3g} ms per request",
        f"The fit is off by {cost.mean_error:.1%} in the mean, by {cost.max_error:.1%} at the most",
        f"KV cache: {profile.kv_tokens:,} tokens; taken from the flags: max_num_seqs {profile.max_num_seqs}, "
        f"max_num_batched_tokens {profile.max_num_batched_tokens}",
    ]
    if measured.unusable:
        lines.append(f"{measured.unusable} groups of answers ran side by side too shortly to be counted")
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def record(
    wanted: CloudBench, found: _Found, measured: CloudMeasured, cost: StepCost, profile: MeasuredCloud
) -> dict[str, Any]:
    """Return the conditions, all timings, the fit and the profile, ready for JSON."""
    info = (found.served.info if found.served else None) or {}
    plan = found.plan or wanted.plan
    return {
        "schema": SCHEMA,
        "kind": "cloud",
        "client": conditions(),
        "engine": info.get("engine"),
        "model": profile.model,
        "reps": plan.reps,
        "load": {"requests": plan.requests, "tokens": plan.tokens, "most_at_a_time": max(plan.widths)},
        "round_trips_s": [_short(one) for one in measured.round_trips],
        "prefill": [{"length": one.length, "seconds": _short(one.seconds)} for one in measured.prefill],
        "decode": [
            {**asdict(one), "context_tokens": round(one.context_tokens, 1), "tpot_s": _short(one.tpot_s)}
            for one in measured.decode
        ],
        "unusable": measured.unusable,
        "fit": {name: _short(value) for name, value in asdict(cost).items()},
        "profile": profile.model_dump(mode="json"),
    }


def _short(value: float) -> float:
    return float(f"{value:.5g}")
