"""Fleet mode: the best settings per class of requests, where GPUs are scarce.

A class is a length of prompts and answers, together with a kind of device. For each class there are a few
settings: plain serving, handoffs with several budgets and shares of the prompt, the device alone. A setting
costs GPU seconds per request, and harm: stalled answers, prompts that are not read whole. One linear program
splits each class among its settings so that harm is least and the GPUs suffice; what does not fit is turned
away, which harms most. The dual value of the GPU constraint is what one more GPU would be worth.

Solved with scipy's `linprog`, or with `milp` where no class may be split.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.errors import ConfigurationError
from pdd_lab.simulator.outcomes import CLOUD_ONLY, DEVICE_ONLY, HANDOFF, VERDICTS, Requests, World, outcomes

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pdd_core.planner.profiles import MeasuredCloud
    from pdd_core.planner.types import Verdict
    from pdd_lab.simulator.cell_link import CellLink

BUDGETS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
RATIOS = (1.0, 0.5, 0.25)
_SEED = 0
_SAMPLES = 400
"""Requests by which a setting's chance of a stall is found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FleetClass:
    """Requests of one length from one kind of device."""

    name: str
    requests_per_s: float
    prompt_tokens: int
    output_tokens: int
    prefill_tps: float
    decode_tps: float
    spread: float = 0.1
    n_ctx: int = 8192
    refines: bool = False
    """Whether prompts of this class may be refined."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Harm:
    """What counts how much, per request of a class. An answer that is turned away counts 1."""

    stall: float = 0.5
    """An answer that stalls."""
    unread: float = 0.02
    """A prompt that is not read at all; half a prompt counts half of it."""
    poor: float = 1.0
    """Quality of experience that is lost against plain serving, all of it; half of it counts half."""
    gigabyte: float = 0.0
    """10^9 bytes of the cloud's KV cache that devices load."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to serve a class."""

    verdict: Verdict
    decode_budget: int | None
    refine_ratio: float
    gpu_s: float
    """GPU seconds per request."""
    stalled_share: float
    harm: float
    """Per request."""
    kv: bool = False
    """Devices load the cloud's KV cache."""
    kv_bytes: float = 0.0
    """Of it, per request."""


@dataclass(frozen=True, slots=True)
class Share:
    """A part of a class that is served by one setting; None: turned away."""

    name: str
    setting: Setting | None
    share: float
    requests_per_s: float


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The best split."""

    shares: tuple[Share, ...]
    gpus_used: float
    harm: float
    """Sum over all requests of one second."""
    shadow_price: float
    """By how much one more GPU would lessen the harm of a second; 0 where GPUs are left over."""
    served_per_s: float


def settings_of(
    one: FleetClass,
    cloud: MeasuredCloud,
    *,
    rate: float,
    ttft_target_s: float,
    harm: Harm,
    link: CellLink | None = None,
) -> list[Setting]:
    """Return the settings that a class could have, those left out that another beats in both GPU time and harm."""
    draw = np.random.default_rng(_SEED)
    speed = _factors(draw, one.spread)
    trip = cloud.rtt_s + cloud.jitter_s * draw.standard_normal(_SAMPLES)
    ttft = cloud.base_s + cloud.per_request_s + cloud.per_prefill_token_s * one.prompt_tokens
    step = cloud.base_s + cloud.per_sequence_s * cloud.max_num_seqs / 2
    arrives = ttft + np.maximum(trip, 0.0)
    carried = np.zeros(_SAMPLES) if link is None else link.cells_per_s * _factors(draw, link.spread)
    world = World(
        prefill_tps=one.prefill_tps * speed,
        decode_tps=one.decode_tps * speed,
        ttft_s=arrives,
        tpot_s=step,
        rtt_s=cloud.rtt_s,
        cells_per_s=carried,
        rate=rate,
        ttft_target_s=ttft_target_s,
    )
    requests = Requests(prompt_tokens=one.prompt_tokens, output_tokens=one.output_tokens)
    tried: list[tuple[int, int | None, float, bool]] = [(CLOUD_ONLY, None, 1.0, False)]
    if one.prompt_tokens + one.output_tokens <= one.n_ctx:
        tried.append((DEVICE_ONLY, None, 1.0, False))
        ways = [(ratio, False) for ratio in (RATIOS if one.refines else RATIOS[:1])]
        tried += [
            (HANDOFF, budget, ratio, kv)
            for ratio, kv in (*ways, *([(1.0, True)] if link is not None else []))
            for budget in BUDGETS
            if budget < one.output_tokens
        ]
    plain = float(outcomes(requests, world, verdict=CLOUD_ONLY, decode_budget=1).qoe.mean())
    made = []
    for verdict, budget, ratio, kv in tried:
        found = outcomes(requests, world, verdict=verdict, decode_budget=budget or 1, refine_ratio=ratio, kv=kv)
        if verdict == DEVICE_ONLY and found.ttft_s.mean() > max(ttft_target_s, float(np.mean(arrives))):
            continue  # it would begin too late
        stalled = float(found.stalled.mean())
        poorer = max(0.0, plain - float(found.qoe.mean()))
        tokens = float(found.cloud_decode_tokens.mean())
        kv_bytes = 0.0 if link is None else link.cell_bytes * float(found.kv_cells.mean())
        unread = harm.unread * (1.0 - ratio) + harm.gigabyte * kv_bytes / 1e9
        made.append(
            Setting(
                VERDICTS[verdict],
                budget,
                ratio,
                0.0 if verdict == DEVICE_ONLY else gpu_seconds(cloud, one.prompt_tokens, tokens),
                stalled,
                harm.stall * stalled + unread + harm.poor * poorer,
                kv,
                kv_bytes,
            )
        )
    return _undominated(made)


def _factors(draw: np.random.Generator, spread: float) -> NDArray[np.float64]:
    """Return log-normal factors with a mean of 1."""
    sigma = np.sqrt(np.log1p(spread**2))
    return np.exp(draw.normal(-(sigma**2) / 2, sigma, _SAMPLES)) if spread else np.ones(_SAMPLES)


def gpu_seconds(cloud: MeasuredCloud, prompt_tokens: int, decoded: float) -> float:
    """Return the GPU seconds of one request in a full batch: its prefill, and its share of the decode steps.

    A batch is as large as `max_num_seqs` and the KV cache allow.
    """
    held = prompt_tokens + decoded / 2
    batch = max(1.0, min(float(cloud.max_num_seqs), cloud.kv_tokens / max(held, 1.0)))
    chunk = min(1.0, prompt_tokens / cloud.max_num_batched_tokens)
    attended = prompt_tokens * (prompt_tokens + 1) / 2
    prefill = (
        cloud.per_prefill_token_s * prompt_tokens + cloud.per_attended_token_s * attended + cloud.base_s * chunk
    )
    decode = max(0.0, decoded - 1) * (
        cloud.base_s / batch + cloud.per_sequence_s + cloud.per_context_token_s * held
    )
    return cloud.per_request_s + prefill + decode


def plan_fleet(
    classes: Sequence[FleetClass], settings: Sequence[Sequence[Setting]], gpus: float, *, mixed: bool = True
) -> FleetPlan:
    """Return the split of each class among its settings that harms least with so many GPUs.

    Args:
        classes: the requests.
        settings: for each class, such as `settings_of` returns.
        gpus: GPU seconds per second.
        mixed: whether a class may be split; if not, each has one setting, or is turned away as a whole.

    Raises:
        ConfigurationError: there is no class, or `gpus` is negative.
    """
    if not classes or gpus < 0:
        raise ConfigurationError("a fleet needs classes, and a number of GPUs that is not negative")
    options = [(i, setting) for i, given in enumerate(settings) for setting in (*given, None)]
    rates = np.array([classes[i].requests_per_s for i, _ in options])
    harm = rates * np.array([1.0 if setting is None else setting.harm for _, setting in options])
    load = rates * np.array([0.0 if setting is None else setting.gpu_s for _, setting in options])
    of_class = np.array([[float(i == at) for i, _ in options] for at in range(len(classes))])
    shares, price = _solve(harm, load, of_class, gpus, mixed=mixed)
    chosen = tuple(
        Share(classes[i].name, setting, float(share), float(share * classes[i].requests_per_s))
        for (i, setting), share in zip(options, shares, strict=True)
        if share > 1e-9
    )
    return FleetPlan(
        chosen,
        float(load @ shares),
        float(harm @ shares),
        price,
        sum(share.requests_per_s for share in chosen if share.setting is not None),
    )


def _solve(harm: Any, load: Any, of_class: Any, gpus: float, *, mixed: bool) -> tuple[Any, float]:
    """Return the shares, and the shadow price of a GPU."""
    from scipy.optimize import Bounds, LinearConstraint, linprog, milp

    relaxed = linprog(
        harm, A_ub=load[None, :], b_ub=[gpus], A_eq=of_class, b_eq=np.ones(len(of_class)), bounds=(0, 1)
    )
    price = max(0.0, -float(relaxed.ineqlin.marginals[0]))
    if mixed:
        return np.asarray(relaxed.x), price
    whole = milp(
        harm,
        constraints=[LinearConstraint(load[None, :], ub=gpus), LinearConstraint(of_class, 1, 1)],
        bounds=Bounds(0, 1),
        integrality=np.ones(len(harm)),
    )
    return np.round(whole.x), price


def _undominated(settings: Sequence[Setting]) -> list[Setting]:
    """Return the settings that no other beats, by rising GPU time."""
    kept: list[Setting] = []
    for setting in sorted(settings, key=lambda one: (one.gpu_s, one.harm)):
        if not kept or setting.harm < kept[-1].harm - 1e-12:
            kept.append(setting)
    return kept
