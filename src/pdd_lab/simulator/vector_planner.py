"""The planner for a million requests at once: the decisions of `Planner`, on arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.planner.cost import PREFILL_WEIGHT, decode_cost
from pdd_core.planner.formulas import (
    ARRAYS,
    Race,
    break_even,
    expected_qoe,
    log_sigma,
    margin,
    median,
    seconds_per_token,
)
from pdd_core.planner.length_table import EDGES
from pdd_core.planner.rules import (
    ENOUGH_SAVED,
    IN_TIME,
    LEAST_GAINED,
    LEAST_REFINED,
    LEAST_SAVED,
    NEGLIGIBLE,
    QOE_SLACK,
    RATIOS,
)
from pdd_core.planner.types import CLOSING_MARGIN, Goals
from pdd_lab.simulator.outcomes import CLOUD_ONLY, DEVICE_ONLY, HANDOFF

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

    from pdd_core.planner.length_table import LengthTable

    Floats = NDArray[np.float64]

_CHUNK = 65536
"""Requests at a time, so that memory stays bounded and arrays in the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """Requests, their devices and the cloud. Every field is a number, or an array of shape (requests,).

    Names and meanings are those of `PlanRequest`, `DeviceState` and `CloudState`; an estimate is two fields. The
    cloud is available.
    """

    prompt_tokens: ArrayLike
    max_tokens: ArrayLike
    rate: ArrayLike
    prefill_tps: ArrayLike
    decode_tps: ArrayLike
    ttft_s: ArrayLike
    """Without the round trip."""
    tpot_s: ArrayLike
    rtt_s: ArrayLike = 0.0
    prefill_tps_sd: ArrayLike = 0.0
    ttft_s_sd: ArrayLike = 0.0
    rtt_s_sd: ArrayLike = 0.0
    held_tokens: ArrayLike = 0.0
    wait_s: ArrayLike = 0.0
    wait_s_sd: ArrayLike = 0.0
    n_ctx: ArrayLike = np.inf
    max_model_len: ArrayLike = np.inf


_NAMES = tuple(one.name for one in fields(Circumstances))


@dataclass(frozen=True, slots=True)
class Plans:
    """Arrays of shape (requests,)."""

    verdict: NDArray[np.int8]
    """Codes as in `outcomes.VERDICTS`."""
    decode_budget: NDArray[np.int64]
    """N of a handoff; 0 elsewhere."""
    refine_ratio: Floats
    """1 for the whole prompt."""
    stall_probability: Floats
    cost: Floats
    """Expected cloud token-seconds."""


def plan_many(
    given: Circumstances,
    tables: Sequence[LengthTable],
    table: ArrayLike = 0,
    *,
    goals: Goals | None = None,
    refine_ratio: float | None = None,
    refinable: bool = False,
    prefill_weight: float = PREFILL_WEIGHT,
) -> Plans:
    """Return the plans that `Planner` would make.

    Args:
        given: requests, devices and cloud.
        tables: distributions of the answers' lengths, such as `OutputLengths.tables`.
        table: index of each request's distribution, such as `OutputLengths.buckets`.
        goals: what a plan has to keep to.
        refine_ratio: share of the prompt to read in a handoff, where it is fixed.
        refinable: whether the planner may choose a refined prompt; the cloud makes them.
        prefill_weight: token-seconds of one token that the cloud prefills.
    """
    values = [np.asarray(getattr(given, name), dtype=np.float64) for name in _NAMES]
    which = np.asarray(table)
    shape = np.broadcast_shapes(which.shape, *(value.shape for value in values))
    which = np.broadcast_to(which, shape)
    columns = [np.broadcast_to(value, shape) for value in values]
    plans = Plans(np.empty(shape, np.int8), np.empty(shape, np.int64), *(np.empty(shape) for _ in range(3)))
    for begin in range(0, shape[0], _CHUNK):
        part = slice(begin, begin + _CHUNK)
        for index in np.unique(which[part]):
            at = begin + np.flatnonzero(which[part] == index)
            cases = _Cases([column[at] for column in columns], tables[index], goals or Goals(), prefill_weight)
            made = cases.plans(refine_ratio, refinable=refinable)
            for name in Plans.__slots__:
                getattr(plans, name)[at] = getattr(made, name)
    return plans


class _Cases:
    """`Case` for many requests whose answers' lengths have one distribution."""

    def __init__(self, columns: Sequence[Floats], table: LengthTable, goals: Goals, prefill_weight: float) -> None:
        self._columns, self._table, self._goals, self._weight = columns, table, goals, prefill_weight
        given: dict[str, Floats] = dict(zip(_NAMES, columns, strict=True))
        self.prompt, self.longest = given["prompt_tokens"], given["max_tokens"]
        self.n_ctx, self.rtt, self.tpot = given["n_ctx"], given["rtt_s"], given["tpot_s"]
        self.fresh = np.maximum(1.0, self.prompt - given["held_tokens"])
        self.per_token: Floats = seconds_per_token(ARRAYS, given["prefill_tps"], given["prefill_tps_sd"])
        self.sigma: Floats = log_sigma(ARRAYS, given["prefill_tps"], given["prefill_tps_sd"])
        self.step = 1.0 / given["decode_tps"]
        self.ttft = given["ttft_s"] + self.rtt
        self.wait, self.wait_sd = given["wait_s"], given["wait_s_sd"]
        self.ttft_sd = np.hypot(given["ttft_s_sd"], given["rtt_s_sd"])
        self.credit_sd = np.hypot(self.ttft_sd, self.wait_sd)
        self.gap = np.maximum(np.maximum(1.0 / given["rate"], self.step), self.tpot)
        self.reader = np.where(np.isfinite(given["rate"]), 1.0 / given["rate"], self.gap)
        self.output, square = self._expected(self.longest)
        self.takes = self.prompt + self.longest <= given["max_model_len"]
        self.plain_cost = self._cost(self.output, square)
        self.plain_qoe = self._qoe(self.ttft, self.tpot)

    def plans(self, fixed: float | None, *, refinable: bool) -> Plans:
        """Return the plans of these requests; `fixed` is the share of the prompt to read, if that is given."""
        count = self.prompt.shape
        device = self._device_only()
        best = Plans(
            verdict=np.where(device, DEVICE_ONLY, CLOUD_ONLY).astype(np.int8),
            decode_budget=np.zeros(count, np.int64),
            refine_ratio=np.ones(count),
            stall_probability=np.zeros(count),
            cost=np.where(device, 0.0, self.plain_cost),
        )
        left = np.flatnonzero(self.takes & ~device)
        needed = np.full(count, LEAST_SAVED)
        shares = RATIOS if refinable and fixed is None else ()
        for tried, share in enumerate((1.0 if fixed is None else fixed, *shares)):
            if not left.size or (tried and share < self._goals.lowest_ratio):
                break
            found = _Cases([column[left] for column in self._columns], self._table, self._goals, self._weight)
            option = found._handoff(share, needed[left])
            _take_over(best, left, option, share)
            if not tried:
                needed[left] = np.where(option.keeps, LEAST_GAINED + option.saved, LEAST_SAVED)
            left = left[~(option.keeps & (option.saved >= ENOUGH_SAVED))]
        return best

    def _device_only(self) -> NDArray[np.bool_]:
        """Return where the device alone is possible, keeps the goals and, costing nothing, wins."""
        reads = self.fresh * self.per_token
        latest = self.wait + IN_TIME * self.wait_sd + reads * np.exp(IN_TIME * self.sigma) + self.step
        in_time = latest <= np.maximum(self._goals.ttft_s, median(ARRAYS, self.ttft, self.ttft_sd))
        wins = in_time & self._keeps_qoe(self._qoe(self.wait + reads + self.step, self.step))
        if self._goals.must_begin_in_cloud:
            wins = np.zeros_like(wins)
        return np.asarray((self.prompt + self.longest <= self.n_ctx) & (wins | ~self.takes))

    def _handoff(self, share: float, least_saved: Floats) -> _Handoffs:
        whole = share >= 1.0
        race = self._race(share)
        budget, stall = self._least_budget(race, 1.0 if whole else float(LEAST_REFINED))
        closing = Race(
            race.work, race.credit, race.credit_sd, race.gap, race.per_token * (1.0 + CLOSING_MARGIN), race.sigma
        )
        decoded, square = self._expected(np.minimum(budget, break_even(ARRAYS, closing) + self.rtt / self.tpot))
        saved = 1.0 - decoded / self.output
        keeps = (np.ceil(self.prompt * share) + self.longest <= self.n_ctx) & (saved >= least_saved)
        keeps &= self._keeps_qoe(self._qoe(self.ttft, self.gap))
        return _Handoffs(budget, stall, saved, self._cost(decoded, square), keeps)

    def _race(self, share: float) -> Race:
        head = self.ttft - self.wait
        kept = np.minimum(1.0, np.ceil(self.prompt * share) / self.fresh)
        kept = np.where(head >= self.fresh * self.per_token, 1.0, kept)
        used = np.where(head > 0, kept, 1.0)
        return Race(
            work=self.fresh * kept,
            credit=head * used - self.step,
            credit_sd=self.credit_sd * used,
            gap=self.gap,
            per_token=self.per_token,
            sigma=self.sigma,
        )

    def _stall(self, race: Race, budget: Any) -> Floats:
        late = ARRAYS.upper_tail(margin(ARRAYS, race, budget))
        return np.asarray(np.interp(budget, EDGES, self._table.survival) * late)

    def _least_budget(self, race: Race, least: float) -> tuple[Floats, Floats]:
        """Return the smallest budgets, and the shares that stall."""
        allowed, longest = self._goals.stall_probability, self.longest - 1.0
        first = self._stall(race, np.full_like(longest, least))
        easy = (longest >= least) & (first <= allowed)
        below = np.full_like(longest, least)
        above = np.minimum(longest, np.maximum(least + 1.0, 2.0 * break_even(ARRAYS, race)))
        stall = self._stall(race, above)
        while np.any(grows := (stall > allowed) & (above < longest)):
            below = np.where(grows, above, below)
            above = np.where(grows, np.minimum(longest, above * 4.0), above)
            stall = np.where(grows, self._stall(race, above), stall)
        found = (longest >= least) & (stall <= allowed)
        while np.any(wide := found & ~easy & (above - below > 1.0)):
            middle = np.floor((below + above) / 2.0)
            tried = self._stall(race, middle)
            lower = wide & (tried <= allowed)
            above, stall = np.where(lower, middle, above), np.where(lower, tried, stall)
            below = np.where(wide & ~lower, middle, below)
        budget = np.where(easy, least, np.where(found, above, self.longest))
        stall = np.where(easy, first, np.where(found, stall, 0.0))
        more = self._stall(race, budget + 1.0)
        takes_all = (stall > NEGLIGIBLE) & (more <= NEGLIGIBLE) & (budget < longest)
        return np.where(takes_all, budget + 1.0, budget), np.where(takes_all, more, stall)

    def _expected(self, limit: Floats) -> tuple[Floats, Floats]:
        table = self._table
        return np.interp(limit, EDGES, table.mean_min), np.interp(limit, EDGES, table.mean_square)

    def _cost(self, decoded: Floats, square: Floats) -> Floats:
        decoding = decode_cost(self.prompt, decoded, square, tpot_s=self.tpot)
        return np.asarray(self._weight * self.prompt + decoding)

    def _qoe(self, ttft: Floats, gap: Floats) -> Floats:
        quality = expected_qoe(
            ARRAYS,
            output=self.output,
            delay_s=np.maximum(0.0, ttft - self._goals.ttft_s),
            slower_s=np.maximum(0.0, gap - self.reader),
            gap=self.reader,
        )
        return np.asarray(quality)

    def _keeps_qoe(self, quality: Floats) -> NDArray[np.bool_]:
        return np.asarray(quality >= np.minimum(self._goals.qoe, self.plain_qoe) - QOE_SLACK)


@dataclass(frozen=True, slots=True)
class _Handoffs:
    budget: Floats
    stall: Floats
    saved: Floats
    cost: Floats
    keeps: NDArray[np.bool_]


def _take_over(best: Plans, left: NDArray[np.int64], option: _Handoffs, share: float) -> None:
    """Write the handoffs that keep the goals and are the cheapest so far into `best`, where `left` says."""
    better = option.keeps & (option.cost < best.cost[left])
    at = left[better]
    best.verdict[at] = HANDOFF
    best.decode_budget[at] = option.budget[better].astype(np.int64)
    best.refine_ratio[at] = min(share, 1.0)
    best.stall_probability[at] = option.stall[better]
    best.cost[at] = option.cost[better]
