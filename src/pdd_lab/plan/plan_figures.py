"""The figures of a plan, ready for JSON."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_lab.simulator.outcomes import CLOUD_ONLY, DEVICE_ONLY, HANDOFF

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pdd_lab.simulator.evaluation import Evaluation
    from pdd_lab.simulator.front import Point
    from pdd_lab.simulator.trace_scenario import Scenario


def figures(
    scenario: Scenario, made: Mapping[str, Evaluation], ceiling: float, front: Sequence[Point]
) -> dict[str, Any]:
    """Return everything that was found out; no number is infinite or nan, null says that there is none."""
    trace, goals = scenario.trace, scenario.goals
    plain = made["plain"]
    return {
        "trace": {
            "name": trace.name,
            "read_as": trace.read_as or None,
            "requests": len(trace),
            "dropped": trace.dropped,
            "seconds": _short(trace.seconds),
            "requests_per_s": _short(trace.requests_per_s),
            "prompt_tokens_mean": _short(float(trace.prompt_tokens.mean())),
            "output_tokens_mean": _short(float(trace.output_tokens.mean())),
        },
        "device": scenario.device.model_dump(mode="json"),
        "cloud": scenario.cloud.model_dump(mode="json"),
        "rate": scenario.rate,
        "ratio": scenario.refine_ratio if scenario.refine_ratio is not None else "auto",
        "goals": {
            "stall_probability": goals.stall_probability,
            "ttft_ms": 1000 * goals.ttft_s,
            "must_begin_in_cloud": goals.must_begin_in_cloud,
        },
        "seed": scenario.seed,
        "link": None if scenario.link is None else asdict(scenario.link),
        "ceiling_requests_per_s": _short(ceiling),
        "policies": {name: policy(one, plain, ceiling) for name, one in made.items()},
        "front": [{key: _short(value) for key, value in asdict(point).items()} for point in front],
    }


def policy(one: Evaluation, plain: Evaluation, ceiling: float) -> dict[str, Any]:
    """Return one policy's figures. Ratios are plain serving's over the policy's: more is better."""
    handoffs = one.choices.verdict == HANDOFF
    both, theirs = one.only(plain.served), plain.only(one.served)
    budgets = one.choices.decode_budget[handoffs]
    p50, p99 = one.ttft_s
    values: dict[str, Any] = {
        "decode_ratio": _over(theirs.decode_tokens, both.decode_tokens),
        "prefill_ratio": _over(theirs.prefill_tokens, both.prefill_tokens),
        "stalled_share": one.stalled_share,
        "keeps_stall_limit": one.keeps_stall_limit,
        "refused": one.refused,
        "handed_off_share": one.share(HANDOFF),
        "cloud_only_share": one.share(CLOUD_ONLY),
        "device_only_share": one.share(DEVICE_ONLY),
        "ttft_p50_ms": 1000 * p50,
        "ttft_p99_ms": 1000 * p99,
        "qoe_mean": one.qoe,
        "requests_per_s": one.requests_per_s,
        "requests_per_s_ratio": _over(one.requests_per_s, plain.requests_per_s),
        "of_ceiling": _over(one.requests_per_s, ceiling),
        "cost_ratio": _over(theirs.cost, both.cost),
        "cloud_decode_tokens": one.decode_tokens,
        "cloud_prefill_tokens": one.prefill_tokens,
        "took_over_share": float(one.outcomes.handed_off.mean()),
        "decode_budget_p50": float(np.median(budgets)) if budgets.size else None,
        "decode_budget_p90": float(np.percentile(budgets, 90)) if budgets.size else None,
        "kept_share": one.kept_share,
        "kv_share": one.kv_share,
        "kv_bytes": one.kv_bytes,
    }
    return {name: _short(value) for name, value in values.items()}


def _over(above: float, below: float) -> float | None:
    return above / below if below else None


def _short(value: Any) -> Any:
    """Return a number with seven digits, None for what JSON has no number for; anything else as it is."""
    if not isinstance(value, float):
        return value
    return float(f"{value:.7g}") if math.isfinite(value) else None
