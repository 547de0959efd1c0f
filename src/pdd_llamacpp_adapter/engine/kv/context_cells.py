"""Cells that wait behind what a context has processed, in sequences of their own. Not thread-safe.

``llama_state_seq_set_data`` empties the sequence that it loads into, and ``llama_decode`` refuses a position that
does not follow its sequence's last one. So cells arrive in a third sequence and wait in a second one, until the
first has come as far as they begin. All share one cache, in which ``llama_memory_seq_cp`` copies nothing.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.engine import llama_log
from pdd_llamacpp_adapter.engine.llama_sequence import is_taken, state_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from pdd_llamacpp_adapter.engine.kv.sequence_state import CellLayout
    from pdd_llamacpp_adapter.engine.llama_sequence import LlamaSequence


class CellSequences(NamedTuple):
    """llama.cpp's sequences for one answer: its own, the cells that wait, and those that arrive."""

    answer: int
    waiting: int
    arriving: int

    @classmethod
    def of(cls, number: int, answers: int) -> CellSequences:
        """Return those of answer `number`, of `answers`: what arrives is there for the length of a call only."""
        return cls(number, answers + number, 2 * answers)

    @classmethod
    def count(cls, answers: int) -> int:
        """Return how many sequences `answers` need."""
        return 2 * answers + 1


class ContextCells:
    """The cells of one sequence of a unified context.

    Args:
        sequence: which `join` extends.
        answers: how many such sequences there are.
        layout: how the context stores cells.
    """

    def __init__(self, sequence: LlamaSequence, answers: int, layout: CellLayout) -> None:
        self._ctx = sequence.context.handle
        self._memory = sequence.context.memory
        self._sequence = sequence
        self._numbers = CellSequences.of(sequence.number, answers)
        self.layout = layout
        self.start = self.end = 0
        """Positions of the cells that wait, half-open; equal where none do."""

    def __len__(self) -> int:
        return self.end - self.start

    def add(self, start: int, state: np.ndarray, count: int) -> None:
        """Take in `count` cells from `start` on, as `sequence_state.written` makes them, before those that wait.

        Raises:
            DeviceEngineFailed: they do not end where those that wait begin, or llama.cpp does not take them; no
                cells wait any more.
        """
        end = start + count
        with self._dropped_on_failure():
            if len(self) and end != self.start:
                raise DeviceEngineFailed(f"cells up to {end} do not end where those from {self.start} on begin")
            if not is_taken(self._ctx, self._numbers.arriving, state):
                raise DeviceEngineFailed(f"llama.cpp does not take cells: {llama_log.reason()}")
            self._check(self._numbers.arriving, start, end)
            L.llama_memory_seq_cp(self._memory, self._numbers.arriving, self._numbers.waiting, -1, -1)
            L.llama_memory_seq_rm(self._memory, self._numbers.arriving, -1, -1)
            self.start, self.end = start, self.end if len(self) else end
            self._check(self._numbers.waiting, self.start, self.end)

    def join(self, ids: Sequence[int]) -> None:
        """Put the cells that wait behind what the sequence holds, so that it holds `ids`.

        Raises:
            DeviceEngineFailed: `ids` do not begin with what it holds or do not end with the cells, or the cells
                begin behind it; no cells wait any more, and it holds what it held.
        """
        front = len(self._sequence.ids)
        with self._dropped_on_failure():
            if list(ids[:front]) != self._sequence.ids:
                raise DeviceEngineFailed("the context does not hold the first of the ids that it is to hold")
            if not (len(self) and self.start <= front < self.end == len(ids)):
                raise DeviceEngineFailed(
                    f"the cells from {self.start} to {self.end} do not lie between {front} and {len(ids)} ids"
                )
            L.llama_memory_seq_cp(self._memory, self._numbers.waiting, self._numbers.answer, front, -1)
            self._check(self._numbers.answer, 0, self.end)
        self._sequence.ids.extend(ids[front:])
        self.drop()

    def drop(self) -> None:
        """Drop the cells that wait."""
        for number in (self._numbers.waiting, self._numbers.arriving):
            L.llama_memory_seq_rm(self._memory, number, -1, -1)
        self.start = self.end = 0

    def waiting(self) -> np.ndarray:
        """Return the state of the cells that wait, uint8."""
        return state_of(self._ctx, self._numbers.waiting)

    def own(self, start: int, end: int) -> np.ndarray:
        """Return the state of the sequence's cells from `start` to `end`, uint8.

        Raises:
            DeviceEngineFailed: it does not hold them.
        """
        if not 0 <= start < end <= len(self._sequence.ids):
            held = len(self._sequence.ids)
            raise DeviceEngineFailed(f"a context of {held} tokens has no cells from {start} to {end}")
        L.llama_memory_seq_cp(self._memory, self._numbers.answer, self._numbers.arriving, start, end)
        try:
            return state_of(self._ctx, self._numbers.arriving)
        finally:
            L.llama_memory_seq_rm(self._memory, self._numbers.arriving, -1, -1)

    @contextmanager
    def _dropped_on_failure(self) -> Iterator[None]:
        try:
            yield
        except DeviceEngineFailed:
            L.llama_memory_seq_rm(self._memory, self._numbers.answer, len(self._sequence.ids), -1)
            self.drop()
            raise

    def _check(self, sequence: int, start: int, end: int) -> None:
        first = int(L.llama_memory_seq_pos_min(self._memory, sequence))
        last = int(L.llama_memory_seq_pos_max(self._memory, sequence))
        if (first, last + 1) != (start, end):
            raise DeviceEngineFailed(f"llama.cpp has cells from {first} to {last + 1}, not from {start} to {end}")
