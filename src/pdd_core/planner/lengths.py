"""The lengths of answers, learnt as they end: for each app or tenant, and for prompts of about the same length."""

from __future__ import annotations

import hashlib
import math
from bisect import bisect_left
from collections import OrderedDict
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.planner.length_table import BINS, EDGES, LONGEST, LengthTable, bin_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import ArrayLike, NDArray

PROMPT_EDGES = (128, 256, 512, 1024, 2048, 4096, 8192)
"""Prompts up to these lengths, in tokens, are told apart."""
BUCKETS = len(PROMPT_EDGES) + 1
PRIOR_MEDIAN = 120
PRIOR_SPREAD = 1.3
"""Before anything is known: a log-normal distribution, half of it between 50 and 290 tokens."""
_STRENGTH = 8.0
"""Answers that have to be seen before a narrower distribution counts as much as the wider one behind it."""
_MEMORY = 1000.0
"""Answers after which an old one has lost about two thirds of its weight."""
MAX_GROUPS = 32
_DIGEST = 8
"""Bytes that a group's name becomes."""
_STALE_AFTER = 32
"""Answers of others after which a table is made anew."""
_LEAST_WEIGHT = 1e-3
"""Less is not written into a file."""


def bucket_of(prompt_tokens: int) -> int:
    """Return the bucket of a prompt's length."""
    return bisect_left(PROMPT_EDGES, prompt_tokens)


def _prior() -> NDArray[np.float64]:
    # integers: an answer of n tokens is one between n - 1/2 and n + 1/2
    at = [(math.log(edge + 0.5) - math.log(PRIOR_MEDIAN)) / (PRIOR_SPREAD * math.sqrt(2)) for edge in EDGES]
    return np.asarray(np.maximum(np.diff([math.erf(value) for value in at]), 1e-9))


class OutputLengths:
    """Distributions of answers' lengths. Bounded: the groups whose answers came last, fixed tables for each.

    A distribution for one group and bucket of prompts falls back on that of the whole group, this on everybody's,
    and that on the prior, each while few answers have been seen. Old answers fade.
    """

    def __init__(self) -> None:
        prior = _prior()
        self._prior = prior / prior.sum()
        self._everyone = np.zeros(BINS)
        self._groups: OrderedDict[str, NDArray[np.float64]] = OrderedDict()
        self._tables: dict[tuple[str, int], tuple[int, LengthTable]] = {}
        self._of_everyone: tuple[int, LengthTable] | None = None
        self._seen = 0

    def observe(self, group: str, prompt_tokens: int, output_tokens: int, *, cut_short: bool = False) -> None:
        """Learn the length of an answer that has ended.

        `cut_short` where it would have gone on: a limit ended it, or its reader left. Then it says that answers
        get longer than this, and no more: its weight goes to the longer ones, as likely as they are (Efron 1967).
        """
        key, bucket = _key(group), bucket_of(prompt_tokens)
        rows = self._rows(key)
        mass = np.zeros(BINS)
        if not cut_short:
            mass[bin_of(output_tokens)] = 1.0
        else:
            mass = _beyond(self._weights(key, bucket), output_tokens)
        for row in (rows[bucket], self._everyone):
            row *= 1.0 - 1.0 / _MEMORY
            row += mass
        self._seen += 1
        self._tables[key, bucket] = (self._seen, LengthTable.of(self._weights(key, bucket)))

    def table(self, group: str, prompt_tokens: int) -> LengthTable:
        """Return the distribution for an answer to come."""
        return self._table(_key(group), bucket_of(prompt_tokens))

    def tables(self, group: str = "") -> tuple[LengthTable, ...]:
        """Return a group's distributions, one for each bucket of `PROMPT_EDGES`."""
        return tuple(self._table(_key(group), bucket) for bucket in range(BUCKETS))

    @staticmethod
    def buckets(prompt_tokens: ArrayLike) -> NDArray[np.int64]:
        """Return which of `tables` is for which prompt."""
        return np.searchsorted(PROMPT_EDGES, prompt_tokens)

    def _table(self, key: str, bucket: int) -> LengthTable:
        if key not in self._groups:
            return self._table_of_everyone()
        made, table = self._tables.get((key, bucket), (-_STALE_AFTER, None))
        if table is None or self._seen - made >= _STALE_AFTER:
            table = LengthTable.of(self._weights(key, bucket))
            self._tables[key, bucket] = (self._seen, table)
        return table

    def _table_of_everyone(self) -> LengthTable:
        """Return the distribution for a group that has not been seen."""
        if self._of_everyone is None or self._of_everyone[0] != self._seen:
            self._of_everyone = (self._seen, LengthTable.of(_lean(self._everyone, self._prior)))
        return self._of_everyone[1]

    def _rows(self, key: str) -> NDArray[np.float64]:
        rows = self._groups.get(key)
        if rows is None:
            rows = self._groups[key] = np.zeros((BUCKETS, BINS))
            while len(self._groups) > MAX_GROUPS:
                dropped, _ = self._groups.popitem(last=False)
                self._tables = {at: one for at, one in self._tables.items() if at[0] != dropped}
        self._groups.move_to_end(key)
        return rows

    def _weights(self, key: str, bucket: int) -> NDArray[np.float64]:
        everyone = _lean(self._everyone, self._prior)
        rows = self._groups.get(key)
        if rows is None:
            return everyone
        return _lean(rows[bucket], _lean(rows.sum(axis=0), everyone))

    def as_json(self) -> dict[str, Any]:
        """Return what was learnt. Groups are told apart by a hash: their names stay here."""
        return {
            "everyone": _sparse(self._everyone),
            "groups": {
                key: {str(bucket): _sparse(row) for bucket, row in enumerate(rows) if row.any()}
                for key, rows in self._groups.items()
            },
        }

    def restore(self, data: Mapping[str, Any]) -> None:
        """Go on from what `as_json` wrote.

        Raises:
            ValueError, TypeError, KeyError, AttributeError, IndexError: it is something else; nothing has changed.
        """
        everyone = _dense(data["everyone"])
        groups: OrderedDict[str, NDArray[np.float64]] = OrderedDict()
        for key, rows in list(data["groups"].items())[-MAX_GROUPS:]:
            if len(key) > 2 * _DIGEST:
                raise ValueError(f"no group: {key}")
            made = groups[key] = np.zeros((BUCKETS, BINS))
            for bucket, row in rows.items():
                if not 0 <= int(bucket) < BUCKETS:
                    raise ValueError(f"no bucket of prompts: {bucket}")
                made[int(bucket)] = _dense(row)
        self._everyone, self._groups, self._tables, self._of_everyone = everyone, groups, {}, None


def _lean(weights: NDArray[np.float64], behind: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return shares: those of `weights`, and those of `behind` as if they were so many answers more."""
    return np.asarray((weights + _STRENGTH * behind) / (weights.sum() + _STRENGTH))


def _beyond(weights: NDArray[np.float64], tokens: int) -> NDArray[np.float64]:
    """Return a weight of one, spread over the lengths above `tokens` as `weights` has them."""
    mass = weights.copy()
    at = bin_of(min(tokens + 1, LONGEST))
    mass[:at] = 0.0
    mass[at] *= (EDGES[at + 1] - min(tokens, LONGEST - 1)) / (EDGES[at + 1] - EDGES[at])
    return np.asarray(mass / mass.sum())


def _key(group: str) -> str:
    return hashlib.blake2b(group.encode(errors="replace"), digest_size=_DIGEST).hexdigest() if group else ""


def _sparse(row: NDArray[np.float64]) -> dict[str, float]:
    return {str(index): round(float(row[index]), 3) for index in np.flatnonzero(row >= _LEAST_WEIGHT)}


def _dense(row: Mapping[str, Any]) -> NDArray[np.float64]:
    made = np.zeros(BINS)
    for index, weight in row.items():
        value = float(weight)
        if not (0 <= int(index) < BINS and 0 <= value <= 2 * _MEMORY):
            raise ValueError(f"no weight of a length: {index}: {weight}")
        made[int(index)] = value
    return made
