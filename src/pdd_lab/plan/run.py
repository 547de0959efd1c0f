"""`pdd-device plan` from beginning to end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pdd_cli.cache import check_writable, published
from pdd_cli.plots.style import check_picture
from pdd_lab.plan.picture import draw
from pdd_lab.plan.plan_figures import figures
from pdd_lab.plan.recommendation import recommendation
from pdd_lab.plan.report import show
from pdd_lab.simulator.evaluation import ceiling, compare
from pdd_lab.simulator.front import front

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from pdd_lab.plan.plan_options import PlanOptions


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
