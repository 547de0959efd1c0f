"""What to expect of a request's plans: times, cost, quality of experience. For one request, or for arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pdd_core.planner.cells import Cells, cells_used
from pdd_core.planner.cost import decode_cost
from pdd_core.planner.formulas import (
    Race,
    break_even,
    expected_qoe,
    late,
    log_sigma,
    median,
    seconds_per_token,
)
from pdd_core.planner.rules import IN_TIME, QOE_SLACK
from pdd_core.planner.types import CLOSING_MARGIN

if TYPE_CHECKING:
    from pdd_core.planner.cost import Weights
    from pdd_core.planner.formulas import Ops
    from pdd_core.planner.types import Goals

_SOON = 2.3263478740408408
"""Standard deviations by which the first cell is taken to come sooner than expected, so that the device has read
less by then: it comes later in ninety-nine of a hundred cases."""


class Expectations:
    """What follows from a request, its device and its cloud, before anything is chosen.

    Args:
        ops: how to compute: with numbers, or with arrays of one shape.
        request: has the numbers of a `PlanRequest`, one each or as arrays.
        device: has those of a `DeviceState`.
        cloud: has those of a `CloudState`.
        goals: what a plan has to keep to; the same for all.
        lengths: the distribution of the answers' lengths, with the methods of `LengthTable`; the same for all.
        weights: what prefill and bytes cost.
    """

    def __init__(
        self, ops: Ops, request: Any, device: Any, cloud: Any, goals: Goals, lengths: Any, weights: Weights
    ) -> None:
        self._ops, self._lengths, self.goals = ops, lengths, goals
        self.request, self.device, self.cloud = request, device, cloud
        prefill, first, trip, tpot = device.prefill_tps, cloud.ttft_s, cloud.rtt_s, cloud.tpot_s.mean
        self._prefill = weights.prefill * request.num_prompt_tokens
        self._byte = ops.where(request.kv_always, 0.0, weights.byte)
        held_whole = request.num_held_whole_tokens
        self.held_whole = request.num_held_tokens if held_whole is None else held_whole
        self._fresh = ops.maximum(1, request.num_prompt_tokens - request.num_held_tokens)
        self._per_token = seconds_per_token(ops, prefill.mean, prefill.sd)
        self._sigma = ops.hypot(log_sigma(ops, prefill.mean, prefill.sd), prefill.doubt)
        self._step = 1.0 / device.decode_tps.mean
        self.ttft = first.mean + trip.mean
        self.ttft_sd = ops.hypot(first.sd, trip.sd)
        sooner = ops.hypot(first.mean * ops.minimum(1.0, first.doubt), trip.mean * ops.minimum(1.0, trip.doubt))
        self._credit_sd = ops.hypot(ops.hypot(self.ttft_sd, sooner), device.wait_s.sd)
        shown = 1.0 / request.rate
        self._gap = ops.maximum(ops.maximum(shown, self._step), tpot)
        self._reader = ops.where(shown > 0.0, shown, self._gap)
        self.output, square = lengths.expected(request.max_tokens)
        longest = cloud.max_model_len
        fits = True if longest is None else request.num_prompt_tokens + request.max_tokens <= longest
        self.cloud_takes = fits & cloud.available
        self._plain_decoding = self._decoding(self.output, square)
        self.plain_cost = self._prefill + self._plain_decoding
        self.plain_qoe = self._qoe(self.ttft, tpot)
        self._lowest_qoe = ops.minimum(goals.qoe, self.plain_qoe) - QOE_SLACK
        link = cloud.link_bps
        self.has_cells: Any = request.kv_cell_bytes is not None and link is not None and link.mean > 0
        # cells have the positions of the whole prompt, what was refined earlier has not
        self.may_use_cells = (self.held_whole >= request.num_held_tokens) & (
            (request.kv_metered == 0) | request.kv_always
        )

    def device_fits(self, ratio: float = 1.0) -> Any:
        """Return whether the answer fits the device's context behind `ratio` of the prompt."""
        request = self.request
        return self._ops.ceil(request.num_prompt_tokens * ratio) + request.max_tokens <= self.device.n_ctx

    def device_alone(self) -> tuple[Any, Any, Any]:
        """Return when the device alone begins, when it does at the latest (seconds), and the quality."""
        ops, wait = self._ops, self.device.wait_s
        reads = ops.maximum(1, self.request.num_prompt_tokens - self.held_whole) * self._per_token
        ttft = wait.mean + reads + self._step
        latest = wait.mean + IN_TIME * wait.sd + reads * ops.exp(IN_TIME * self._sigma) + self._step
        return ttft, latest, self._qoe(ttft, self._step)

    def latest_begin(self) -> Any:
        """Return the seconds within which the device alone has to begin."""
        return self._ops.maximum(self.goals.ttft_s, median(self._ops, self.ttft, self.ttft_sd))

    def race(self, ratio: float, *, kv: bool = False) -> Race:
        """Return the device's race in a handoff, with `ratio` of the prompt to read, or with cells.

        A refined prompt comes with the first token: until then the device reads the whole one, and gains only the
        share of that time which is not spent on what is dropped.
        """
        ops = self._ops
        head = self.ttft - self.device.wait_s.mean
        kept = ops.minimum(1.0, ops.ceil(self.request.num_prompt_tokens * ratio) / self._fresh)
        # where all is read before the refined prompt is there, nothing is dropped
        kept = ops.where(head >= self._fresh * self._per_token, 1.0, kept)
        used = ops.where(head > 0, kept, 1.0)
        return Race(
            work=self._fresh * kept,
            credit=head * used - self._step,
            credit_sd=self._credit_sd * used,
            gap=self._gap,
            per_token=self._per_token,
            sigma=self._sigma,
            cells=self._cells(head) if kv else None,
        )

    def _cells(self, head: Any) -> Cells:
        """Return the cells; `head` is for how long the device has read when the first token arrives.

        They take another round trip, and wait for a device that is busy.
        """
        ops, link, trip, size = self._ops, self.cloud.link_bps, self.cloud.rtt_s, self.request.kv_cell_bytes
        arrive = head + trip.mean
        return Cells(
            per_s=1.0 / (size * seconds_per_token(ops, link.mean, link.sd)),
            sigma=ops.hypot(log_sigma(ops, link.mean, link.sd), link.doubt),
            ahead=ops.maximum(0.0, arrive - _SOON * self._credit_sd),
            after=trip.mean + ops.maximum(0.0, -arrive) + self._step,
            after_sd=ops.where(arrive > 0, trip.sd, self._credit_sd),
        )

    def kv_bytes(self, race: Race) -> Any:
        """Return the bytes of cells that are expected to arrive."""
        return 0.0 if race.cells is None else self.request.kv_cell_bytes * cells_used(self._ops, race, race.cells)

    def net_saved(self, saved: Any, kv_bytes: Any) -> Any:
        """Return the share of the cloud's decode tokens that is saved, less what the bytes cost."""
        return saved - kv_bytes * self._byte / self._plain_decoding

    def stall(self, race: Race, budget: Any) -> Any:
        """Return the share of answers that stall with `budget`."""
        return self._lengths.longer_than(budget) * late(self._ops, race, budget)

    def stops_at(self, race: Race) -> Any:
        """Return the tokens at which a device of median speed is expected to close the cloud, or ``inf``."""
        closes = break_even(self._ops, race, slower=CLOSING_MARGIN)
        return closes + self.cloud.rtt_s.mean / self.cloud.tpot_s.mean

    def decoded(self, budget: Any, stops_at: Any) -> tuple[Any, Any]:
        """Return the mean of the tokens that the cloud decodes, and the mean of their square."""
        expected: tuple[Any, Any] = self._lengths.expected(self._ops.minimum(budget, stops_at))
        return expected

    def handoff_qoe(self) -> Any:
        """Return the quality of a handoff: shown evenly, as slowly as the slowest part."""
        return self._qoe(self.ttft, self._gap)

    def keeps_qoe(self, quality: Any) -> Any:
        """Return whether `quality` reaches the goal, or what the cloud alone would give."""
        return quality >= self._lowest_qoe

    def cost(self, decoded: Any, square: Any, kv_bytes: Any = 0.0) -> Any:
        """Return the token-seconds of the cloud for so many tokens, their square, and bytes of cells."""
        return self._prefill + self._decoding(decoded, square) + kv_bytes * self._byte

    def _decoding(self, decoded: Any, square: Any) -> Any:
        return decode_cost(self.request.num_prompt_tokens, decoded, square, tpot_s=self.cloud.tpot_s.mean)

    def _qoe(self, ttft: Any, gap: Any) -> Any:
        return expected_qoe(
            self._ops,
            output=self.output,
            delay_s=self._ops.maximum(0.0, ttft - self.goals.ttft_s),
            slower_s=self._ops.maximum(0.0, gap - self._reader),
            gap=self._reader,
        )
