"""`pdd-device plan` from beginning to end: the figures, the picture of the Pareto front, the settings file."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pdd_cli.cache import check_writable, published
from pdd_cli.plots.style import (
    BLACK,
    BLUE,
    GREEN,
    ORANGE,
    VERMILLION,
    check_picture,
    figure,
    save,
    shared_legend,
)
from pdd_core.planner.plan_file import PlanFile, PlannedSettings
from pdd_lab.plan.plan_figures import figures
from pdd_lab.plan.report import show
from pdd_lab.simulator.evaluation import ceiling, compare
from pdd_lab.simulator.front import front

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from rich.console import Console

    from pdd_core.planner.profiles import MeasuredCloud
    from pdd_lab.plan.plan_options import PlanOptions
    from pdd_lab.simulator.evaluation import Evaluation
    from pdd_lab.simulator.trace_scenario import Scenario

_COLOURS = (BLUE, VERMILLION, GREEN, ORANGE)
_MARKERS = ("o", "s", "^", "D")
_LINEAR_BELOW = 0.1
"""Percent: from here on the axis of the stalls is logarithmic."""
_PLANS: dict[str, Any] = {"planner": "auto", "oracle": "auto", "plain": "cloud"}


def run_plan(
    options: PlanOptions, *, json_path: Path | None, plot: Path | None, settings: Path | None, console: Console
) -> None:
    """Simulate, compare, and write what is asked for.

    Raises:
        ConfigurationError: an option cannot work, or a file cannot be written.
        InvalidTrace: the trace is malformed.
    """
    check_picture(plot)
    check_writable(json_path, settings)
    budgets = options.budgets
    scenario = options.scenario()
    with console.status(f"simulating {len(scenario.trace):,} requests"):
        made = compare(scenario, budgets=budgets)
        highest = ceiling(scenario)
        points = front(scenario) if plot or json_path else []
    found = figures(scenario, made, highest, points)
    show(found, options.policy, console)
    if plot:
        png, svg = draw(found, plot)
        console.print(f"front     {png}, {svg}", soft_wrap=True, highlight=False, markup=False)
    if settings:
        recommendation(scenario, made, options.policy).save(settings)
        console.print(f"settings  {settings}", soft_wrap=True, highlight=False, markup=False)
    if json_path:
        with published(json_path) as draft:
            draft.write_text(json.dumps({**found, "policy": options.policy}, indent=2) + "\n", "utf-8")
        console.print(f"figures   {json_path}", soft_wrap=True, highlight=False, markup=False)


def draw(figures: Mapping[str, Any], target: Path) -> tuple[Path, Path]:
    """Draw cloud load against stalls, two lines per share of the prompt that devices read; return PNG and SVG."""
    points = figures["front"]
    device, trace = figures["device"], figures["trace"]
    title = f"{trace['name']}, {device['name']} at {device['prefill_tps'][0]['value']:g} tok/s prefill"
    picture, (axes,) = figure(width=7.2, height=5.0, title=title)
    axes.set_yscale("symlog", linthresh=_LINEAR_BELOW)
    ratios = list(dict.fromkeys(point["ratio"] for point in points))
    for ratio, colour, marker in zip(ratios, _COLOURS, _MARKERS, strict=False):
        for policy, line in (("planner", "-"), ("fixed", "--")):
            chosen = [point for point in points if (point["policy"], point["ratio"]) == (policy, ratio)]
            axes.plot(
                [point["decode_tokens"] for point in chosen],
                [100 * point["stalled_share"] for point in chosen],
                color=colour,
                marker=marker,
                markerfacecolor=colour if policy == "planner" else "white",
                linestyle=line,
                label=f"{'planner' if policy == 'planner' else 'fixed budget'}, {ratio:.0%} of the prompt read",
            )
    limit = 100 * figures["goals"]["stall_probability"]
    axes.axhline(limit, color=BLACK, linewidth=1, linestyle=":", label=f"limit: {limit:g} %")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 100)
    axes.set_yticks([0, 0.1, 1, 10, 100], ["0", "0.1", "1", "10", "100"])
    axes.set_xlabel(f"cloud decode tokens per request (plain serving: {trace['output_tokens_mean']:.0f})")
    axes.set_ylabel("stalled answers (%)")
    shared_legend(picture)
    return save(picture, target)


def recommendation(scenario: Scenario, made: Mapping[str, Evaluation], policy: str) -> PlanFile:
    """Return the settings that make `policy` happen, as `pdd-device serve` and the plugin load them.

    Clients that name no budget get the best fixed one from the plugin.
    """
    goals, lengths = scenario.goals, made["planner"].lengths
    fixed = policy not in _PLANS
    ratio = scenario.refine_ratio
    return PlanFile(
        settings=PlannedSettings(
            plan=_PLANS.get(policy, "handoff"),
            decode_budget=_budget(made[policy]) if fixed else "auto",
            stall_probability=goals.stall_probability,
            ttft_target_s=goals.ttft_s,
            must_begin_in_cloud=goals.must_begin_in_cloud,
            rate=scenario.rate,
            refine="auto" if ratio is None else "off" if ratio >= 1 else ratio,
            n_ctx=scenario.device.n_ctx,
            **_kv_settings(scenario),
        ),
        device=scenario.device,
        cloud=_with_link(scenario),
        lengths=None if lengths is None else lengths.as_json(),
        plugin={"default_decode_budget": _budget(made["best_fixed"])},
    )


def _kv_settings(scenario: Scenario) -> dict[str, Any]:
    link = scenario.link
    if link is None:
        return {}
    return {
        "kv": "always" if link.always else "auto",
        "kv_price_per_gb": link.price_per_gb,
        "gpu_hour_price": link.gpu_hour_price,
    }


def _with_link(scenario: Scenario) -> MeasuredCloud:
    link = scenario.link
    if link is None:
        return scenario.cloud
    return scenario.cloud.model_copy(update={"link_bps": link.bytes_per_s, "link_spread": link.spread})


def _budget(one: Evaluation) -> int:
    return int(one.choices.decode_budget.max())
