"""Profile files: what a device or a cloud can do, as measured by ``pdd-device bench``."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from pdd_core.planner.json_file import JsonFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike, NDArray

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Speed = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RatePoint(BaseModel):
    """A speed at one length."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: NotNegative
    """Tokens in the context."""
    value: Speed
    """Tokens per second."""


class _Profile(JsonFile):
    name: str
    """What it is a profile of, for people."""
    model: str
    """The model that was measured."""


class MeasuredDevice(_Profile):
    """A device's engine: speeds over the length of what its context holds."""

    prefill_tps: Annotated[tuple[RatePoint, ...], Field(min_length=1)]
    """Prompt tokens per second, `at` tokens in the context. Linear between the points, constant outside."""
    decode_tps: Annotated[tuple[RatePoint, ...], Field(min_length=1)]
    """Answer tokens per second, `at` tokens in the context."""
    spread: NotNegative = 0.1
    """Relative standard deviation of both speeds from request to request."""
    n_ctx: PositiveInt
    """Tokens that the context holds."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        for name in ("prefill_tps", "decode_tps"):
            lengths = [point.at for point in getattr(self, name)]
            if any(later <= earlier for earlier, later in pairwise(lengths)):
                raise ValueError(f"{name} must have rising lengths `at`")
        return self


class MeasuredCloud(_Profile):
    """A cloud's engine: what a step costs, what it holds at a time, and how far away it is.

    One step takes base_s + per_prefill_token_s * prefill tokens + per_sequence_s * decoding sequences +
    per_context_token_s * the tokens that those hold in the KV cache.
    """

    base_s: NotNegative
    per_prefill_token_s: NotNegative
    per_sequence_s: NotNegative
    per_context_token_s: NotNegative
    per_request_s: NotNegative = 0.0
    """What API server and scheduler need for one request, one after the other."""
    per_attended_token_s: NotNegative = 0.0
    """What each prefill token's attention to one token before it, cached ones included, takes in addition."""
    kv_tokens: PositiveInt
    """Tokens that the KV cache holds."""
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    block_size: PositiveInt = 16
    """Tokens of a block of the KV cache."""
    rtt_s: NotNegative
    """One round trip between device and cloud."""
    jitter_s: NotNegative
    """Standard deviation of `rtt_s`."""
    refines: bool = False
    """Whether the cloud makes refined prompts."""
    kv_cell_bytes: PositiveInt | None = None
    """Bytes of one token's cell of the KV cache, as the cloud sends it; None if it sends none."""
    link_bps: Speed | None = None
    """Goodput of the link from cloud to device, in bytes per second; None if it is not known."""
    link_spread: NotNegative = 0.2
    """Relative standard deviation of `link_bps` from request to request."""


def rate_at(points: Sequence[RatePoint], length: ArrayLike) -> NDArray[np.float64]:
    """Return the speed at `length` tokens in the context: linear between the points, constant outside."""
    return np.interp(
        np.asarray(length, dtype=np.float64), [point.at for point in points], [point.value for point in points]
    )


def mean_rate(points: Sequence[RatePoint], begin: ArrayLike, end: ArrayLike) -> NDArray[np.float64]:
    """Return the speed at which tokens `begin` to `end` are processed: their number over the time they take."""
    first, last = np.asarray(begin, dtype=np.float64), np.asarray(end, dtype=np.float64)
    seconds = _seconds(points, last) - _seconds(points, first)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(seconds > 0, (last - first) / seconds, rate_at(points, first))


def _seconds(points: Sequence[RatePoint], length: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the time from an empty context to `length` tokens: the exact integral of 1 / speed."""
    at, value = np.array([[point.at, point.value] for point in points]).T
    if at[0] > 0:
        at, value = np.concatenate([[0.0], at]), np.concatenate([value[:1], value])
    slope = np.append(np.diff(value) / np.diff(at), 0.0)
    knots = np.concatenate([[0.0], np.cumsum(_piece(value[:-1], slope[:-1], np.diff(at)))])
    piece = np.clip(np.searchsorted(at, length, side="right") - 1, 0, len(at) - 1)
    return np.asarray(knots[piece] + _piece(value[piece], slope[piece], length - at[piece]))


def _piece(
    value: NDArray[np.float64], slope: NDArray[np.float64], tokens: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Return the seconds for `tokens` where the speed is `value` and changes by `slope` with every token."""
    change = slope * tokens / value
    flat = np.abs(change) < 1e-9
    return np.where(flat, tokens / value, np.log1p(change) / np.where(flat, 1.0, slope))
