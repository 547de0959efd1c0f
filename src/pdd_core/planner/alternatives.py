"""The plans that a request could have: what each costs, how likely its user waits, and which goal it misses."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from pdd_core.planner.cost import decode_cost
from pdd_core.planner.formulas import (
    NUMBERS,
    Race,
    break_even,
    expected_qoe,
    log_sigma,
    margin,
    median,
    seconds_per_token,
)
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
from pdd_core.planner.types import CLOSING_MARGIN, Alternative, Verdict

if TYPE_CHECKING:
    from pdd_core.planner.length_table import LengthTable
    from pdd_core.planner.types import CloudState, DeviceState, Goals, PlanRequest


class Case:
    """One request and what is known of its circumstances."""

    def __init__(
        self,
        request: PlanRequest,
        device: DeviceState,
        cloud: CloudState,
        goals: Goals,
        table: LengthTable,
        prefill_weight: float,
    ) -> None:
        self.request, self.device, self.cloud, self.goals = request, device, cloud, goals
        self._table = table
        self._prefill = prefill_weight * request.num_prompt_tokens
        prefill, decode = device.prefill_tps, device.decode_tps
        self._held_whole = request.num_held_tokens
        if request.num_held_whole_tokens is not None:
            self._held_whole = request.num_held_whole_tokens
        self._fresh = max(1, request.num_prompt_tokens - request.num_held_tokens)
        self._per_token = seconds_per_token(NUMBERS, prefill.mean, prefill.sd)
        self._sigma = math.hypot(log_sigma(NUMBERS, prefill.mean, prefill.sd), prefill.doubt)
        self._step = 1.0 / decode.mean
        self._wait = device.wait_s.mean
        self._ttft = cloud.ttft_s.mean + cloud.rtt_s.mean
        self._ttft_sd = math.hypot(cloud.ttft_s.sd, cloud.rtt_s.sd)
        sooner = math.hypot(*(one.mean * min(1.0, one.doubt) for one in (cloud.ttft_s, cloud.rtt_s)))
        self._credit_sd = math.hypot(self._ttft_sd, sooner, device.wait_s.sd)
        self._gap = max(1.0 / request.rate, self._step, cloud.tpot_s.mean)
        self._reader = 1.0 / request.rate if math.isfinite(request.rate) else self._gap
        self.output, self._square = table.expected(request.max_tokens)
        whole = request.num_prompt_tokens + request.max_tokens
        self._cloud_takes = cloud.available and (cloud.max_model_len is None or whole <= cloud.max_model_len)
        self.plain_cost = self._cost(self.output, self._square)
        self._plain_qoe = self._qoe(self._ttft, cloud.tpot_s.mean)

    def cloud_only(self) -> Alternative | None:
        """Return the plan by which the cloud makes the whole answer; None where it cannot."""
        if not self._cloud_takes:
            return None
        return Alternative(
            verdict=Verdict.CLOUD_ONLY, cost=self.plain_cost, ttft_s=self._ttft, qoe=self._plain_qoe
        )

    def device_only(self) -> Alternative | None:
        """Return the plan by which the device makes the whole answer; None where it cannot."""
        request = self.request
        if request.num_prompt_tokens + request.max_tokens > self.device.n_ctx:
            return None
        reads = max(1, request.num_prompt_tokens - self._held_whole) * self._per_token
        ttft = self._wait + reads + self._step
        latest = (
            self._wait + IN_TIME * self.device.wait_s.sd + reads * math.exp(IN_TIME * self._sigma) + self._step
        )
        quality = self._qoe(ttft, self._step)
        rejected = None
        if self._cloud_takes:
            if self.goals.must_begin_in_cloud:
                rejected = "the answer must begin in the cloud"
            elif latest > max(self.goals.ttft_s, median(NUMBERS, self._ttft, self._ttft_sd)):
                rejected = f"begins only after {latest:.2g} s"
            else:
                rejected = self._misses_qoe(quality)
        return Alternative(verdict=Verdict.DEVICE_ONLY, saved=1.0, ttft_s=ttft, qoe=quality, rejected=rejected)

    def handoffs(self) -> list[Alternative]:
        """Return the handoffs worth looking at: with the whole prompt, and refined where that does too little."""
        if not self._cloud_takes:
            return []
        fixed = self.request.refine_ratio
        alternatives = [self.handoff(1.0 if fixed is None else fixed)]
        if fixed is not None or not (self.request.refinable and self.cloud.refines):
            return alternatives
        needed = LEAST_SAVED if alternatives[0].rejected else LEAST_GAINED + alternatives[0].saved
        for ratio in RATIOS:
            if saves_enough(alternatives[-1]) or ratio < self.goals.lowest_ratio:
                break
            alternatives.append(self.handoff(ratio, needed))
        return alternatives

    def handoff(self, ratio: float, least_saved: float = LEAST_SAVED) -> Alternative:
        """Return the handoff with the smallest budget that keeps the stall probability.

        Args:
            ratio: share of the prompt that the device reads.
            least_saved: share of the cloud's tokens that has to be saved.
        """
        request = self.request
        refined = None if ratio >= 1.0 else ratio
        race = self._race(ratio)
        if math.ceil(request.num_prompt_tokens * ratio) + request.max_tokens > self.device.n_ctx:
            return self._hopeless(refined, "does not fit the device's context")
        judged = refined is not None or self._held_whole < request.num_held_tokens
        least = LEAST_REFINED if judged else 1
        budget, stall = self._without_a_rest(race, *self._least_budget(race, least))
        stops_at = self._stops_at(race)
        decoded, square = self._table.expected(min(budget, stops_at))
        saved = 1.0 - decoded / self.output
        quality = self._qoe(self._ttft, self._gap)  # shown evenly: as slowly as the slowest part
        rejected = self._misses_qoe(quality)
        if rejected is None and saved < least_saved:
            late = math.isinf(stops_at)
            rejected = "never ready in time" if late else f"saves only {saved:.1%} of the cloud's tokens"
        return Alternative(
            verdict=Verdict.HANDOFF,
            decode_budget=budget,
            refine_ratio=refined,
            cost=self._cost(decoded, square),
            saved=saved,
            stall_probability=stall,
            ttft_s=self._ttft,
            qoe=quality,
            rejected=rejected,
        )

    def inputs(self) -> dict[str, float | int | str | bool | None]:
        """Return what was known, for the explanation."""
        request, device, cloud = self.request, self.device, self.cloud
        return {
            "prompt_tokens": request.num_prompt_tokens,
            "held_tokens": request.num_held_tokens,
            "held_whole_tokens": self._held_whole,
            "max_tokens": request.max_tokens,
            "rate": request.rate,
            "prefill_tps": device.prefill_tps.mean,
            "prefill_tps_sd": device.prefill_tps.sd,
            "prefill_doubt": device.prefill_tps.doubt,
            "decode_tps": device.decode_tps.mean,
            "device_wait_s": device.wait_s.mean,
            "cloud_available": cloud.available,
            "cloud_ttft_s": self._ttft,
            "cloud_ttft_s_sd": self._ttft_sd,
            "cloud_tpot_s": cloud.tpot_s.mean,
            "expected_tokens": self.output,
            "stall_probability": self.goals.stall_probability,
        }

    def _race(self, ratio: float) -> Race:
        """Return the device's race, with `ratio` of the prompt to read.

        A refined prompt comes with the first token: until then the device reads the whole one, and gains only the
        share of that time which is not spent on what is dropped.
        """
        head = self._ttft - self._wait
        kept = min(1.0, math.ceil(self.request.num_prompt_tokens * ratio) / self._fresh)
        if head >= self._fresh * self._per_token:
            kept = 1.0  # all is read before the refined prompt is there
        used = kept if head > 0 else 1.0
        return Race(
            work=self._fresh * kept,
            credit=head * used - self._step,
            credit_sd=self._credit_sd * used,
            gap=self._gap,
            per_token=self._per_token,
            sigma=self._sigma,
        )

    def _stall(self, race: Race, budget: int) -> float:
        return self._table.longer_than(budget) * float(NUMBERS.upper_tail(margin(NUMBERS, race, budget)))

    def _least_budget(self, race: Race, least: int) -> tuple[int, float]:
        """Return the smallest budget with which few enough answers stall, and the share that does.

        Where no other will do it is the whole answer: a cloud without a cap goes on until the device is ready.
        """
        allowed, longest = self.goals.stall_probability, self.request.max_tokens - 1
        if longest < least:
            return self.request.max_tokens, 0.0
        if (stall := self._stall(race, least)) <= allowed:
            return least, stall
        # at the break-even half of the answers that are long enough would stall: the search begins above it
        below, above = least, int(min(longest, max(least + 1, 2 * break_even(NUMBERS, race))))
        while (stall := self._stall(race, above)) > allowed:
            if above == longest:
                return self.request.max_tokens, 0.0
            below, above = above, min(longest, above * 4)
        best = stall
        while above - below > 1:
            middle = (below + above) // 2
            if (stall := self._stall(race, middle)) <= allowed:
                above, best = middle, stall
            else:
                below = middle
        return above, best

    def _without_a_rest(self, race: Race, budget: int, stall: float) -> tuple[int, float]:
        """Return the budget, with one token more where that leaves next to no risk, and the share that stalls."""
        if stall > NEGLIGIBLE and budget < self.request.max_tokens - 1:
            more = self._stall(race, budget + 1)
            if more <= NEGLIGIBLE:
                return budget + 1, more
        return budget, stall

    def _stops_at(self, race: Race) -> float:
        """Return the tokens at which a device of median speed is expected to close the cloud."""
        longer = race.per_token * (1.0 + CLOSING_MARGIN)
        closing = Race(race.work, race.credit, race.credit_sd, race.gap, longer, race.sigma)
        return float(break_even(NUMBERS, closing)) + self.cloud.rtt_s.mean / self.cloud.tpot_s.mean

    def _cost(self, decoded: float, square: float) -> float:
        tpot = self.cloud.tpot_s.mean
        return self._prefill + float(decode_cost(self.request.num_prompt_tokens, decoded, square, tpot_s=tpot))

    def _qoe(self, ttft: float, gap: float) -> float:
        return float(
            expected_qoe(
                NUMBERS,
                output=self.output,
                delay_s=max(0.0, ttft - self.goals.ttft_s),
                slower_s=max(0.0, gap - self._reader),
                gap=self._reader,
            )
        )

    def _misses_qoe(self, quality: float) -> str | None:
        """Say so if `quality` is below the goal, and below what the cloud alone would give."""
        if quality >= min(self.goals.qoe, self._plain_qoe) - QOE_SLACK:
            return None
        return f"quality of experience {quality:.3f}"

    def last_resort(self) -> Alternative:
        """Return what is left where prompt and answer fit nobody; the session will refuse it."""
        verdict = Verdict.CLOUD_ONLY if self.cloud.available else Verdict.DEVICE_ONLY
        return Alternative(verdict=verdict, rejected="prompt and answer fit neither side")

    def _hopeless(self, ratio: float | None, why: str) -> Alternative:
        return Alternative(
            verdict=Verdict.HANDOFF,
            decode_budget=self.request.max_tokens,
            refine_ratio=ratio,
            cost=self.plain_cost,
            stall_probability=self._table.longer_than(self.request.max_tokens),
            ttft_s=self._ttft,
            qoe=self._plain_qoe,
            rejected=why,
        )


def saves_enough(alternative: Alternative) -> bool:
    """Whether a handoff needs no smaller share of the prompt."""
    return alternative.rejected is None and alternative.saved >= ENOUGH_SAVED
