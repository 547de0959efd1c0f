"""From timings to what a step of the cloud's engine costs: least squares, none of the costs below zero."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import ConfigurationError
from pdd_lab.bench.cloud_measure import Decode, Prefill

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_lab.bench.cloud_measure import CloudMeasured


@dataclass(frozen=True, slots=True)
class StepCost:
    """What was fitted; fields as in `CloudProfile`."""

    base_s: float
    per_prefill_token_s: float
    per_sequence_s: float
    per_context_token_s: float
    per_request_s: float
    per_attended_token_s: float
    mean_error: float
    """Of the timings it was fitted to: mean relative distance, |fitted / measured - 1|."""
    max_error: float

    def prefill_s(self, length: int, most_batched: int) -> float:
        """Return the seconds of a prompt on an idle engine, without the round trip."""
        steps = math.ceil(length / most_batched)
        tokens = length * self.per_prefill_token_s + _attended(length) * self.per_attended_token_s
        return self.per_request_s + steps * self.base_s + tokens

    def decode_s(self, width: float, context_tokens: float) -> float:
        """Return the seconds of a step that decodes `width` answers, which hold `context_tokens` in all."""
        return self.base_s + width * self.per_sequence_s + context_tokens * self.per_context_token_s


def fit(measured: CloudMeasured, *, most_batched: int) -> StepCost:
    """Fit the costs to the medians of what was measured, by relative distances: short times count as much as long.

    Args:
        measured: prompts of at least two lengths, and answers of at least two widths.
        most_batched: tokens that the engine takes in one step (vLLM's ``max_num_batched_tokens``).

    Raises:
        ConfigurationError: too little was measured to tell the costs apart.
    """
    from scipy.optimize import nnls

    prompts, answers = medians_of_prompts(measured.prefill), medians_of_answers(measured.decode)
    if len(prompts) < 2 or len({one.width for one in answers}) < 2:
        raise ConfigurationError("a fit needs prompts of two lengths, and answers of two widths")
    rows: list[list[float]] = [
        [math.ceil(one.length / most_batched), one.length, 0, 0, 1, _attended(one.length)] for one in prompts
    ]
    rows += [[1, 0, one.width, one.context_tokens, 0, 0] for one in answers]
    # what a prompt waits for on the way is no cost of the engine's
    seconds = [max(one.seconds - measured.rtt_s, 1e-6) for one in prompts] + [one.tpot_s for one in answers]
    scaled = np.array(rows, dtype=float) / np.array(seconds)[:, None]
    # columns of one size: nnls stops at a fixed tolerance
    size = np.linalg.norm(scaled, axis=0)
    found, _ = nnls(scaled / size, np.ones(len(seconds)))
    costs = found / size
    errors = np.abs(scaled @ costs - 1)
    names = [one.name for one in fields(StepCost)][: len(costs)]
    found_costs = dict(zip(names, costs.tolist(), strict=True))
    return StepCost(**found_costs, mean_error=float(errors.mean()), max_error=float(errors.max()))


def _attended(length: int) -> float:
    """Return how many tokens all tokens of a prompt look at: each at itself and all before it."""
    return length * (length + 1) / 2


def medians_of_prompts(found: Sequence[Prefill]) -> list[Prefill]:
    """Return one entry per length: the median of its repetitions."""
    return [
        Prefill(length, float(np.median([one.seconds for one in found if one.length == length])))
        for length in sorted({one.length for one in found})
    ]


def medians_of_answers(found: Sequence[Decode]) -> list[Decode]:
    """Return one entry per width and prompt length: the medians of its repetitions."""
    kinds = sorted({(one.prompt_tokens, one.width) for one in found})
    own = {kind: [one for one in found if (one.prompt_tokens, one.width) == kind] for kind in kinds}
    return [
        Decode(
            width,
            prompt,
            float(np.median([one.context_tokens for one in group])),
            float(np.median([one.tpot_s for one in group])),
        )
        for (prompt, width), group in own.items()
    ]
