"""The planner for a million requests at once: the decisions of `Planner`, on arrays."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.planner.cost import PREFILL_WEIGHT, Weights
from pdd_core.planner.types import Goals
from pdd_lab.simulator.vector_cases import UNDECIDED, Cases, Plans, rows_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import ArrayLike

    from pdd_core.planner.length_table import LengthTable

_CHUNK = 65536
"""Requests at a time, so that memory stays bounded and arrays in the processor's cache."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Circumstances:
    """Requests, their devices and the cloud. Every field is a number, or an array of shape (requests,).

    Names and meanings are those of `PlanRequest`, `DeviceState` and `CloudState`; an estimate is several
    fields.
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
    prefill_tps_doubt: ArrayLike = 0.0
    ttft_s_doubt: ArrayLike = 0.0
    rtt_s_doubt: ArrayLike = 0.0
    held_whole_tokens: ArrayLike | None = None
    """None: all of `held_tokens`."""
    available: ArrayLike = True
    verdict: ArrayLike = UNDECIDED
    """The code of one that is fixed, as in `outcomes.VERDICTS`, or `UNDECIDED`."""
    kv_cell_bytes: ArrayLike | None = None
    """None: there are no cells."""
    kv_always: ArrayLike = False
    kv_metered: ArrayLike = False
    link_bps: ArrayLike | None = None
    """None: not known. 0: nothing arrives."""
    link_bps_sd: ArrayLike = 0.0
    link_bps_doubt: ArrayLike = 0.0


_NAMES = tuple(one.name for one in fields(Circumstances))


def plan_many(
    given: Circumstances,
    tables: Sequence[LengthTable],
    table: ArrayLike = 0,
    *,
    goals: Goals | None = None,
    refine_ratio: float | None = None,
    refinable: bool = False,
    prefill_weight: float = PREFILL_WEIGHT,
    byte_weight: float = 0.0,
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
        byte_weight: token-seconds of one byte of a cell that the cloud sends.
    """
    columns = {
        name: np.asarray(value, dtype=np.float64) for name in _NAMES if (value := getattr(given, name)) is not None
    }
    which = np.asarray(table)
    shape = np.broadcast_shapes(which.shape, *(column.shape for column in columns.values()))
    which = np.broadcast_to(which, shape)
    for name, column in columns.items():
        if column.ndim or name == "prompt_tokens":
            columns[name] = np.broadcast_to(column, shape)
    plans = Plans(
        np.empty(shape, np.int8),
        np.empty(shape, np.int64),
        refine_ratio=np.empty(shape),
        stall_probability=np.empty(shape),
        cost=np.empty(shape),
        kv=np.empty(shape, np.bool_),
        kv_bytes=np.empty(shape),
    )
    weights = Weights(prefill_weight, byte_weight)
    for begin in range(0, shape[0], _CHUNK):
        part = slice(begin, begin + _CHUNK)
        for index in np.unique(which[part]):
            at = begin + np.flatnonzero(which[part] == index)
            cases = Cases(rows_of(columns, at), tables[index], goals or Goals(), weights)
            made = cases.plans(refine_ratio, refinable=refinable)
            for name in Plans.__slots__:
                getattr(plans, name)[at] = getattr(made, name)
    return plans
