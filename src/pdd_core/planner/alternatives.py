"""The plans that a request could have: what each costs, how likely its user waits, and which goal it misses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pdd_core.planner.expectations import Expectations
from pdd_core.planner.formulas import NUMBERS, break_even
from pdd_core.planner.rules import (
    ENOUGH_SAVED,
    LEAST_GAINED,
    LEAST_GAINED_BY_CELLS,
    LEAST_REFINED,
    LEAST_SAVED,
    NEGLIGIBLE,
    RATIOS,
)
from pdd_core.planner.types import Alternative, Verdict

if TYPE_CHECKING:
    from pdd_core.planner.cost import Weights
    from pdd_core.planner.formulas import Race
    from pdd_core.planner.length_table import LengthTable
    from pdd_core.planner.types import CloudState, DeviceState, Goals, PlanRequest


class Case(Expectations):
    """One request and what is known of its circumstances.

    `pdd_lab.simulator.vector_planner` searches and chooses in the same way, for arrays of requests.
    """

    def __init__(
        self,
        request: PlanRequest,
        device: DeviceState,
        cloud: CloudState,
        goals: Goals,
        table: LengthTable,
        weights: Weights,
    ) -> None:
        super().__init__(NUMBERS, request, device, cloud, goals, table, weights)

    def cloud_only(self) -> Alternative | None:
        """Return the plan by which the cloud makes the whole answer; None where it cannot."""
        if not self.cloud_takes:
            return None
        return Alternative(verdict=Verdict.CLOUD_ONLY, cost=self.plain_cost, ttft_s=self.ttft, qoe=self.plain_qoe)

    def device_only(self) -> Alternative | None:
        """Return the plan by which the device makes the whole answer; None where it cannot."""
        if not self.device_fits():
            return None
        ttft, latest, quality = self.device_alone()
        rejected = None
        if self.cloud_takes:
            if self.goals.must_begin_in_cloud:
                rejected = "the answer must begin in the cloud"
            elif latest > self.latest_begin():
                rejected = f"begins only after {latest:.2g} s"
            else:
                rejected = self._misses_qoe(quality)
        return Alternative(verdict=Verdict.DEVICE_ONLY, saved=1.0, ttft_s=ttft, qoe=quality, rejected=rejected)

    def handoffs(self) -> list[Alternative]:
        """Return the handoffs worth looking at: whole, with cells, and refined where these do too little."""
        if not self.cloud_takes:
            return []
        fixed = self.request.refine_ratio
        has_cells = self.has_cells and (fixed is None or fixed >= 1.0)
        if has_cells and self.request.kv_always and self.may_use_cells:
            return [self.handoff(1.0, kv=True)]
        best = self.handoff(1.0 if fixed is None else fixed)
        alternatives = [best]
        if has_cells:
            alternatives.append(self.handoff(1.0, self._to_gain(best, LEAST_GAINED_BY_CELLS), kv=True))
            best = best if alternatives[-1].rejected else alternatives[-1]
        if fixed is not None or not (self.request.refinable and self.cloud.refines):
            return alternatives
        needed = self._to_gain(best, LEAST_GAINED)
        for ratio in RATIOS:
            if self._saves_enough(best) or ratio < self.goals.lowest_ratio:
                break
            alternatives.append(best := self.handoff(ratio, needed))
        return alternatives

    def _to_gain(self, best: Alternative, more: float) -> float:
        """Return the share of the cloud's tokens that another handoff has to save: `more` than `best` does."""
        return LEAST_SAVED if best.rejected else more + self.net_saved(best.saved, best.kv_bytes)

    def _saves_enough(self, best: Alternative) -> bool:
        """Whether a handoff needs no smaller share of the prompt."""
        return best.rejected is None and self.net_saved(best.saved, best.kv_bytes) >= ENOUGH_SAVED

    def handoff(self, ratio: float, least_saved: float = LEAST_SAVED, *, kv: bool = False) -> Alternative:
        """Return the handoff with the smallest budget that keeps the stall probability.

        Args:
            ratio: share of the prompt that the device reads.
            least_saved: share of the cloud's tokens that has to be saved.
            kv: whether the device loads cells.
        """
        refined = None if ratio >= 1.0 else ratio
        if not self.device_fits(ratio):
            return self._hopeless(refined, "does not fit the device's context", kv=kv)
        race = self.race(ratio, kv=kv)
        judged = kv or refined is not None or self.held_whole < self.request.num_held_tokens
        budget, stall = self._without_a_rest(race, *self._least_budget(race, LEAST_REFINED if judged else 1))
        stops_at = self.stops_at(race)
        decoded, square = self.decoded(budget, stops_at)
        saved = 1.0 - decoded / self.output
        kv_bytes = self.kv_bytes(race)
        quality = self.handoff_qoe()
        rejected = (self._without_cells() if kv else None) or self._misses_qoe(quality)
        if rejected is None and self.net_saved(saved, kv_bytes) < least_saved:
            if math.isinf(stops_at):
                rejected = "never ready in time"
            elif saved < least_saved:
                rejected = f"saves only {saved:.1%} of the cloud's tokens"
            else:
                rejected = f"{kv_bytes / 1e6:.3g} MB cost too much for {saved:.1%} of the cloud's tokens"
        return Alternative(
            verdict=Verdict.HANDOFF,
            decode_budget=budget,
            refine_ratio=refined,
            cost=self.cost(decoded, square, kv_bytes),
            saved=saved,
            stall_probability=stall,
            ttft_s=self.ttft,
            qoe=quality,
            rejected=rejected,
            kv=kv,
            kv_bytes=kv_bytes,
        )

    def _without_cells(self) -> str | None:
        """Say why there can be no cells; None where there can."""
        if self.may_use_cells:
            return None
        return "the link is metered" if self.request.kv_metered else "the device holds a refined prompt"

    def inputs(self) -> dict[str, float | int | str | bool | None]:
        """Return what was known, for the explanation."""
        request, device, cloud, link = self.request, self.device, self.cloud, self.cloud.link_bps
        cells: dict[str, float | int | str | bool | None] = {}
        if request.kv_cell_bytes is not None and link is not None:
            cells = {
                "kv_cell_bytes": request.kv_cell_bytes,
                "kv_always": request.kv_always,
                "kv_metered": request.kv_metered,
                "link_bps": link.mean,
                "link_bps_sd": link.sd,
                "link_doubt": link.doubt,
            }
        return {
            "prompt_tokens": request.num_prompt_tokens,
            "held_tokens": request.num_held_tokens,
            "held_whole_tokens": self.held_whole,
            "max_tokens": request.max_tokens,
            "rate": request.rate,
            "prefill_tps": device.prefill_tps.mean,
            "prefill_tps_sd": device.prefill_tps.sd,
            "prefill_doubt": device.prefill_tps.doubt,
            "decode_tps": device.decode_tps.mean,
            "device_wait_s": device.wait_s.mean,
            "cloud_available": cloud.available,
            "cloud_ttft_s": self.ttft,
            "cloud_ttft_s_sd": self.ttft_sd,
            "cloud_tpot_s": cloud.tpot_s.mean,
            "expected_tokens": self.output,
            "stall_probability": self.goals.stall_probability,
            **cells,
        }

    def _least_budget(self, race: Race, least: int) -> tuple[int, float]:
        """Return the smallest budget with which few enough answers stall, and the share that does.

        Where no other will do it is the whole answer: a cloud without a cap goes on until the device is ready.
        """
        allowed, longest = self.goals.stall_probability, self.request.max_tokens - 1
        if longest < least:
            return self.request.max_tokens, 0.0
        if (stall := self.stall(race, least)) <= allowed:
            return least, stall
        # at the break-even half of the answers that are long enough would stall: the search begins above it
        below, above = least, int(min(longest, max(least + 1, 2 * break_even(NUMBERS, race))))
        while (stall := self.stall(race, above)) > allowed:
            if above == longest:
                return self.request.max_tokens, 0.0
            below, above = above, min(longest, above * 4)
        best = stall
        while above - below > 1:
            middle = (below + above) // 2
            if (stall := self.stall(race, middle)) <= allowed:
                above, best = middle, stall
            else:
                below = middle
        return above, best

    def _without_a_rest(self, race: Race, budget: int, stall: float) -> tuple[int, float]:
        """Return the budget, with one token more where that leaves next to no risk, and the share that stalls."""
        if stall > NEGLIGIBLE and budget < self.request.max_tokens - 1:
            more = self.stall(race, budget + 1)
            if more <= NEGLIGIBLE:
                return budget + 1, more
        return budget, stall

    def _misses_qoe(self, quality: float) -> str | None:
        """Say so if `quality` is below the goal, and below what the cloud alone would give."""
        return None if self.keeps_qoe(quality) else f"quality of experience {quality:.3f}"

    def last_resort(self) -> Alternative:
        """Return what is left where prompt and answer fit nobody; the session will refuse it."""
        verdict = Verdict.CLOUD_ONLY if self.cloud.available else Verdict.DEVICE_ONLY
        return Alternative(verdict=verdict, rejected="prompt and answer fit neither side")

    def _hopeless(self, ratio: float | None, why: str, *, kv: bool) -> Alternative:
        return Alternative(
            verdict=Verdict.HANDOFF,
            decode_budget=self.request.max_tokens,
            refine_ratio=ratio,
            cost=self.plain_cost,
            stall_probability=self._lengths.longer_than(self.request.max_tokens),
            ttft_s=self.ttft,
            qoe=self.plain_qoe,
            rejected=why,
            kv=kv,
        )
