"""`Case` for arrays of requests: searches and chooses in the same way, in the same order."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import erfc

from pdd_core.planner.expectations import Expectations
from pdd_core.planner.formulas import Ops, Race, break_even
from pdd_core.planner.length_table import EDGES
from pdd_core.planner.rules import (
    ENOUGH_SAVED,
    LEAST_GAINED,
    LEAST_GAINED_BY_CELLS,
    LEAST_REFINED,
    LEAST_SAVED,
    NEGLIGIBLE,
    RATIOS,
)
from pdd_lab.simulator.outcomes import CLOUD_ONLY, DEVICE_ONLY, HANDOFF

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from pdd_core.planner.cost import Weights
    from pdd_core.planner.length_table import LengthTable
    from pdd_core.planner.types import Goals

    Floats = NDArray[np.float64]

ARRAYS = Ops(
    log=np.log,
    log1p=np.log1p,
    exp=np.exp,
    sqrt=np.sqrt,
    hypot=np.hypot,
    ceil=np.ceil,
    maximum=np.maximum,
    minimum=np.minimum,
    where=np.where,
    erfc=erfc,
)
UNDECIDED = -1
"""As a verdict: the planner chooses it."""


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
    kv: NDArray[np.bool_]
    """Where the device loads cells of the cloud's KV cache."""
    kv_bytes: Floats
    """Expected bytes of these; 0 elsewhere."""


def rows_of(columns: dict[str, Floats], at: NDArray[np.intp]) -> dict[str, Floats]:
    """Return the columns of the requests `at`. One number stays one number, which is computed with once."""
    return {name: column[at] if column.ndim else column for name, column in columns.items()}


class _Estimate(NamedTuple):
    """`Estimate` for many requests."""

    mean: Any
    sd: Any = 0.0
    doubt: Any = 0.0


class _Lengths(NamedTuple):
    """`LengthTable` for many requests."""

    table: LengthTable

    def longer_than(self, tokens: Any) -> Any:
        return np.interp(tokens, EDGES, self.table.survival)

    def expected(self, limit: Any) -> tuple[Any, Any]:
        return np.interp(limit, EDGES, self.table.mean_min), np.interp(limit, EDGES, self.table.mean_square)


class Cases(Expectations):
    """`Case` for many requests whose answers' lengths have one distribution."""

    def __init__(self, columns: dict[str, Floats], table: LengthTable, goals: Goals, weights: Weights) -> None:
        self._columns, self._table, self._weights = columns, table, weights
        given = SimpleNamespace(**columns)
        request = SimpleNamespace(
            num_prompt_tokens=given.prompt_tokens,
            num_held_tokens=given.held_tokens,
            num_held_whole_tokens=columns.get("held_whole_tokens"),
            max_tokens=given.max_tokens,
            rate=given.rate,
            kv_cell_bytes=columns.get("kv_cell_bytes"),
            kv_always=given.kv_always > 0,
            kv_metered=given.kv_metered > 0,
        )
        device = SimpleNamespace(
            prefill_tps=_Estimate(given.prefill_tps, given.prefill_tps_sd, given.prefill_tps_doubt),
            decode_tps=_Estimate(given.decode_tps),
            wait_s=_Estimate(given.wait_s, given.wait_s_sd),
            n_ctx=given.n_ctx,
        )
        cloud = SimpleNamespace(
            ttft_s=_Estimate(given.ttft_s, given.ttft_s_sd, given.ttft_s_doubt),
            rtt_s=_Estimate(given.rtt_s, given.rtt_s_sd, given.rtt_s_doubt),
            tpot_s=_Estimate(given.tpot_s),
            max_model_len=given.max_model_len,
            available=given.available > 0,
            link_bps=_Estimate(columns["link_bps"], given.link_bps_sd, given.link_bps_doubt)
            if "link_bps" in columns
            else None,
        )
        super().__init__(ARRAYS, request, device, cloud, goals, _Lengths(table), weights)

    def plans(self, fixed: float | None, *, refinable: bool) -> Plans:
        """Return the plans of these requests; `fixed` is the share of the prompt to read, if that is given."""
        count, wanted = self.request.num_prompt_tokens.shape, self._columns["verdict"]
        device = self._device_only(wanted)
        best = Plans(
            verdict=np.where(device, DEVICE_ONLY, CLOUD_ONLY).astype(np.int8),
            decode_budget=np.zeros(count, np.int64),
            refine_ratio=np.ones(count),
            stall_probability=np.zeros(count),
            cost=np.where(device, 0.0, self.plain_cost),
            kv=np.zeros(count, np.bool_),
            kv_bytes=np.zeros(count),
        )
        forced = np.broadcast_to(wanted == HANDOFF, count)
        open_ = self.cloud_takes & ~device & (wanted != CLOUD_ONLY)
        cells = open_ & self.has_cells & (fixed is None or fixed >= 1.0)
        always = cells & self.request.kv_always & self.may_use_cells
        saved, to_beat, enough = np.full(count, np.nan), best.cost.copy(), always.copy()
        # where a handoff is asked for, the first one counts even if it keeps no goal
        tries = [
            (1.0 if fixed is None else fixed, False, open_ & ~always, forced & ~always),
            (1.0, True, cells, forced & always),
        ]
        if refinable and fixed is None:
            tries += [(share, False, None, None) for share in RATIOS if share >= self.goals.lowest_ratio]
        for share, kv, where, counts in tries:
            at = np.flatnonzero(open_ & ~enough if where is None else where)
            if not at.size:
                continue
            found = Cases(rows_of(self._columns, at), self._table, self.goals, self._weights)
            more = saved[at] + (LEAST_GAINED_BY_CELLS if kv else LEAST_GAINED)
            option = found._handoff(share, np.where(np.isnan(more), LEAST_SAVED, more), kv=kv)
            better = option.keeps & (option.cost < to_beat[at])
            to_beat[at[better]] = option.cost[better]
            _take_over(best, at, better if counts is None else better | counts[at], option, share, kv=kv)
            kept = at[option.keeps]
            enough[kept] |= option.net[option.keeps] >= ENOUGH_SAVED
            if where is not None:
                saved[kept] = option.net[option.keeps]
        return best

    def _device_only(self, wanted: Floats) -> NDArray[np.bool_]:
        """Return where the device makes the whole answer: costing nothing, it wins where it keeps the goals."""
        _, latest, quality = self.device_alone()
        wins = (latest <= self.latest_begin()) & self.keeps_qoe(quality)
        if self.goals.must_begin_in_cloud:
            wins = np.zeros_like(wins)
        fits = self.device_fits()
        chosen = fits & ((wanted == DEVICE_ONLY) | (wins & (wanted == UNDECIDED)))
        return np.asarray(np.where(self.cloud_takes, chosen, fits | ~self.cloud.available))

    def _handoff(self, share: float, least_saved: Floats, *, kv: bool) -> _Handoffs:
        race = self.race(share, kv=kv)
        judged = kv | (share < 1.0) | (self.held_whole < self.request.num_held_tokens)
        budget, stall = self._least_budget(race, np.where(judged, float(LEAST_REFINED), 1.0))
        decoded, square = self.decoded(budget, self.stops_at(race))
        kv_bytes, fits = self.kv_bytes(race), self.device_fits(share)
        cost = self.cost(decoded, square, kv_bytes)
        net = self.net_saved(1.0 - decoded / self.output, kv_bytes)
        keeps = fits & (net >= least_saved) & self.keeps_qoe(self.handoff_qoe())
        if kv:
            keeps = keeps & self.may_use_cells
        if not fits.all():  # the whole answer then, as `Case` has it
            longest = self.request.max_tokens
            budget = np.where(fits, budget, longest)
            stall = np.where(fits, stall, self._lengths.longer_than(longest))
            cost = np.where(fits, cost, self.plain_cost)
            kv_bytes = np.where(fits, kv_bytes, 0.0)
        return _Handoffs(budget, stall, net, cost, keeps, np.broadcast_to(kv_bytes, cost.shape))

    def _least_budget(self, race: Race, least: Floats) -> tuple[Floats, Floats]:
        """Return the smallest budgets, and the shares that stall."""
        allowed, whole = self.goals.stall_probability, self.request.max_tokens
        longest, below = whole - 1.0, least
        first = self.stall(race, least)
        easy = (longest >= least) & (first <= allowed)
        above = np.minimum(longest, np.maximum(least + 1.0, 2.0 * break_even(ARRAYS, race)))
        stall = self.stall(race, above)
        while np.any(grows := (stall > allowed) & (above < longest)):
            below = np.where(grows, above, below)
            above = np.where(grows, np.minimum(longest, above * 4.0), above)
            stall = np.where(grows, self.stall(race, above), stall)
        found = (longest >= least) & (stall <= allowed)
        while np.any(wide := found & ~easy & (above - below > 1.0)):
            middle = np.floor((below + above) / 2.0)
            tried = self.stall(race, middle)
            lower = wide & (tried <= allowed)
            above, stall = np.where(lower, middle, above), np.where(lower, tried, stall)
            below = np.where(wide & ~lower, middle, below)
        budget = np.where(easy, least, np.where(found, above, whole))
        stall = np.where(easy, first, np.where(found, stall, 0.0))
        more = self.stall(race, budget + 1.0)
        takes_all = (stall > NEGLIGIBLE) & (more <= NEGLIGIBLE) & (budget < longest)
        return np.where(takes_all, budget + 1.0, budget), np.where(takes_all, more, stall)


@dataclass(frozen=True, slots=True)
class _Handoffs:
    budget: Floats
    stall: Floats
    net: Floats
    """Share of the cloud's decode tokens that is saved, less what bytes cost."""
    cost: Floats
    keeps: NDArray[np.bool_]
    kv_bytes: Floats


def _take_over(
    best: Plans, left: NDArray[np.intp], better: NDArray[np.bool_], option: _Handoffs, share: float, *, kv: bool
) -> None:
    """Write the handoffs that are `better` into `best`, where `left` says."""
    at = left[better]
    best.verdict[at] = HANDOFF
    best.decode_budget[at] = option.budget[better].astype(np.int64)
    best.refine_ratio[at] = min(share, 1.0)
    best.stall_probability[at] = option.stall[better]
    best.cost[at] = option.cost[better]
    best.kv[at] = kv
    best.kv_bytes[at] = option.kv_bytes[better]
