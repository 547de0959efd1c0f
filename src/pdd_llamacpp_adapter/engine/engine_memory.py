"""What the device's engine remembers: the ids of each sequence, and the prompt that they were read in place of."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from pdd_core.errors import DeviceEngineFailed, InvalidCells
from pdd_llamacpp_adapter.engine.history import RefinedHistory, held_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from pdd_llamacpp_adapter.engine.engine_thread import EngineThread
    from pdd_llamacpp_adapter.engine.kv.context_cells import ContextCells
    from pdd_llamacpp_adapter.engine.llama_sequence import LlamaSequence

MAX_SAVED_BYTES = 512 * 2**20
"""Of a memory that is put aside: a bound on what idle work may cost."""


@dataclass(frozen=True, slots=True, eq=False)
class SavedMemory:
    """A sequence's memory, put aside."""

    state: np.ndarray
    """llama.cpp's own form of it, uint8."""
    ids: tuple[int, ...]
    history: RefinedHistory | None


class EngineMemory:
    """What one sequence of the context holds. Once it is closed, every call raises DeviceEngineFailed.

    Args:
        sequence: the sequence.
        thread: the one that makes all its calls.
    """

    def __init__(self, sequence: LlamaSequence, thread: EngineThread) -> None:
        self._thread = thread
        self._sequence = sequence
        self._aside: SavedMemory | None = None

    @property
    def sequence(self) -> LlamaSequence:
        """The sequence, for calls on its thread."""
        if self._sequence.context.closed:
            raise DeviceEngineFailed("the engine is closed")
        return self._sequence

    @property
    def n_past(self) -> int:
        """Tokens that the sequence holds."""
        return len(self.sequence.ids)

    @property
    def history(self) -> RefinedHistory | None:
        """The refined prompt that the sequence's first ids are; None where they are none."""
        return self._found_by_next().history

    def remember(self, history: RefinedHistory) -> None:
        """Remember that what the sequence holds begins with a refined prompt. `start` and `rewind` keep to it.

        Raises:
            DeviceEngineFailed: the sequence holds something else.
        """
        sequence = self.sequence
        if tuple(sequence.ids[: len(history.ids)]) != history.ids:
            raise DeviceEngineFailed("the sequence does not hold the refined prompt that it is said to hold")
        sequence.history = history

    def holds(self, prompt: Sequence[int], *, refined: bool = True) -> int:
        """Return how many tokens of `prompt` the sequence has now: what `start` would keep, called at once."""
        found = self._found_by_next()
        return held_of(prompt, found.ids, found.history if refined else None).covered

    async def start(self, prompt: Sequence[int], *, refined: bool = True) -> int:
        """Keep what the sequence has of `prompt` already, drop the rest, and return how many tokens that is.

        Always fewer than all: the last token has to be processed to give logits. A refined prompt counts with the
        tokens of the whole one. With `refined` False, only tokens that are the prompt's own are kept. Cells that
        wait are dropped.
        """
        sequence = self.sequence

        def keep() -> int:
            if sequence.cells:
                sequence.cells.drop()
            held = held_of(prompt, sequence.ids, sequence.history if refined else None)
            if sequence.rewind(held.length) != held.length:
                return 0
            sequence.history = held.history
            return held.covered

        return await self._thread.call(keep)

    async def rewind(self, length: int) -> int:
        """Keep the first `length` tokens, or none where that cannot be had exactly. Returns how many are kept.

        Cells that wait stay where some tokens are kept.
        """
        sequence = self.sequence
        return await self._thread.call(lambda: sequence.rewind(min(length, len(sequence.ids))))

    def reset(self) -> None:
        """Forget everything, so that the next answer starts cold. Blocks; not while an answer is being made."""
        sequence = self.sequence
        self._thread.run(lambda: sequence.rewind(0))

    def whole(self) -> list[int]:
        """Return what the sequence holds, or would hold had nothing been refined."""
        sequence = self.sequence
        return list(sequence.ids) if sequence.history is None else sequence.history.whole(sequence.ids)

    async def save(self) -> SavedMemory | None:
        """Return a copy of the memory, for `load`; None where that would take more than `MAX_SAVED_BYTES`."""
        sequence = self.sequence

        def copy() -> SavedMemory | None:
            if sequence.state_size() > MAX_SAVED_BYTES:
                return None
            return SavedMemory(sequence.state(), tuple(sequence.ids), sequence.history)

        return await self._thread.call(copy)

    @contextmanager
    def telling_of(self, saved: SavedMemory) -> Iterator[None]:
        """Until the block ends, have `history` and `holds` tell of `saved`: the next answer will find that."""
        self._aside = saved
        try:
            yield
        finally:
            self._aside = None

    async def load(self, saved: SavedMemory) -> None:
        """Put a saved memory in the place of what the sequence holds.

        Raises:
            DeviceEngineFailed: llama.cpp does not take it back; the sequence then holds nothing.
        """
        sequence = self.sequence

        def restore() -> None:
            sequence.load(saved.state, saved.ids)
            sequence.history = saved.history

        await self._thread.call(restore)

    async def add_cells(self, start: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Have cells wait behind what the sequence holds; those of the back come first.

        Args:
            start: position of the first one; behind the last one, those that wait begin, if any do.
            keys: float32 of shape (layers, cells, KV heads, head size), with RoPE, as vLLM has them.
            values: the same of values.

        Raises:
            InvalidCells: the arrays are not what they have to be.
            DeviceEngineFailed: they do not end where others begin, or llama.cpp does not take them. After either,
                no cells wait any more, and the sequence holds what it held.
        """
        from pdd_llamacpp_adapter.engine.kv.sequence_state import written

        cells = self._cells()
        try:
            state = await anyio.to_thread.run_sync(written, cells.layout, start, keys, values)
        except InvalidCells:
            await self._thread.call(cells.drop)
            raise
        await self._thread.call(lambda: cells.add(start, state, keys.shape[1]))

    async def join_cells(self, ids: Sequence[int]) -> None:
        """Put the cells that wait behind what the sequence holds, which then is `ids`.

        It may hold some of the cells' tokens already: these cells are left out.

        Raises:
            DeviceEngineFailed: it does not hold the first of `ids` as far as the cells begin, or the cells do not
                end with them. No cells wait any more, and the sequence holds what it held.
        """
        cells = self._cells()
        await self._thread.call(lambda: cells.join(ids))

    async def drop_cells(self) -> None:
        """Drop the cells that wait, if any do; harmless where none can."""
        if (cells := self.sequence.cells) is not None:
            await self._thread.call(cells.drop)

    async def compare_cells(self, start: int, keys: np.ndarray, values: np.ndarray) -> float:
        """Return how alike these cells and the sequence's own at the same positions are, -1 to 1.

        That is the cosine similarity of the layer where it is worst. Arguments are those of `add_cells`.

        Raises:
            InvalidCells: the arrays are not what they have to be.
            DeviceEngineFailed: the sequence does not hold these positions.
        """
        from pdd_llamacpp_adapter.engine.kv.comparison import likeness
        from pdd_llamacpp_adapter.engine.kv.sequence_state import read

        cells = self._cells()
        end = await anyio.to_thread.run_sync(cells.layout.check, start, keys, values)
        state = await self._thread.call(lambda: cells.own(start, end))
        return await anyio.to_thread.run_sync(lambda: likeness(read(cells.layout, state), keys, values))

    def _cells(self) -> ContextCells:
        sequence = self.sequence
        if sequence.cells is None:
            raise DeviceEngineFailed(f"the sequence takes in no cells: {sequence.context.kv.reason}")
        return sequence.cells

    def _found_by_next(self) -> SavedMemory | LlamaSequence:
        """Return what has the ids and the history that an answer would find now."""
        return self.sequence if self._aside is None else self._aside
