"""What the device's engine remembers: the ids in its context, and the prompt that they were read in place of."""

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

    from pdd_llamacpp_adapter.engine.context import LlamaContext
    from pdd_llamacpp_adapter.engine.engine_thread import EngineThread
    from pdd_llamacpp_adapter.engine.kv.context_cells import ContextCells
    from pdd_llamacpp_adapter.engine.kv.kv_support import KVSupport

MAX_SAVED_BYTES = 512 * 2**20
"""Of a memory that is put aside: a bound on what idle work may cost."""


@dataclass(frozen=True, slots=True, eq=False)
class SavedMemory:
    """A context's memory, put aside."""

    state: np.ndarray
    """llama.cpp's own form of it, uint8."""
    ids: tuple[int, ...]
    history: RefinedHistory | None


class EngineMemory:
    """What one context holds. Once it is closed, every call raises DeviceEngineFailed.

    Args:
        context: the context.
        thread: the one that makes all its calls.
    """

    def __init__(self, context: LlamaContext, thread: EngineThread) -> None:
        self._thread = thread
        self._context: LlamaContext | None = context
        self._aside: SavedMemory | None = None

    @property
    def context(self) -> LlamaContext:
        """The context, for calls on its thread."""
        if self._context is None:
            raise DeviceEngineFailed("the engine is closed")
        return self._context

    def close(self) -> None:
        """Stop what the thread does, free the context, and end the thread. Blocks. Harmless when repeated."""
        if self._context is None:
            return
        context, self._context = self._context, None
        self._thread.stop(context.close)

    @property
    def n_past(self) -> int:
        """Tokens that the context holds."""
        return len(self.context.ids)

    @property
    def history(self) -> RefinedHistory | None:
        """The refined prompt that the context's first ids are; None where they are none."""
        return self._found_by_next().history

    def remember(self, history: RefinedHistory) -> None:
        """Remember that what the context holds begins with a refined prompt. `start` and `rewind` keep to it.

        Raises:
            DeviceEngineFailed: the context holds something else.
        """
        context = self.context
        if tuple(context.ids[: len(history.ids)]) != history.ids:
            raise DeviceEngineFailed("the context does not hold the refined prompt that it is said to hold")
        context.history = history

    def holds(self, prompt: Sequence[int], *, refined: bool = True) -> int:
        """Return how many tokens of `prompt` the context has now: what `start` would keep, called at once."""
        found = self._found_by_next()
        return held_of(prompt, found.ids, found.history if refined else None).covered

    async def start(self, prompt: Sequence[int], *, refined: bool = True) -> int:
        """Keep what the context has of `prompt` already, drop the rest, and return how many of its tokens that is.

        Always fewer than all: the last token has to be processed to give logits. A refined prompt counts with the
        tokens of the whole one. With `refined` False, only tokens that are the prompt's own are kept. Cells that
        wait are dropped.
        """
        context = self.context

        def keep() -> int:
            if context.cells:
                context.cells.drop()
            held = held_of(prompt, context.ids, context.history if refined else None)
            if context.rewind(held.length) != held.length:
                return 0
            context.history = held.history
            return held.covered

        return await self._thread.call(keep)

    async def rewind(self, length: int) -> int:
        """Keep the first `length` tokens, or none where that cannot be had exactly. Returns how many are kept.

        Cells that wait stay where some tokens are kept.
        """
        context = self.context
        return await self._thread.call(lambda: context.rewind(min(length, len(context.ids))))

    def reset(self) -> None:
        """Forget everything, so that the next answer starts cold. Blocks; not while an answer is being made."""
        context = self.context
        self._thread.run(lambda: context.rewind(0))

    def whole(self) -> list[int]:
        """Return what the context holds, or would hold had nothing been refined."""
        context = self.context
        return list(context.ids) if context.history is None else context.history.whole(context.ids)

    async def save(self) -> SavedMemory | None:
        """Return a copy of the memory, for `load`; None where that would take more than `MAX_SAVED_BYTES`."""
        context = self.context

        def copy() -> SavedMemory | None:
            if context.state_size() > MAX_SAVED_BYTES:
                return None
            return SavedMemory(context.state(), tuple(context.ids), context.history)

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
        """Put a saved memory in the place of what the context holds.

        Raises:
            DeviceEngineFailed: llama.cpp does not take it back; the context then holds nothing.
        """
        context = self.context

        def restore() -> None:
            context.load(saved.state, saved.ids)
            context.history = saved.history

        await self._thread.call(restore)

    @property
    def kv(self) -> KVSupport:
        """Whether cells that were computed elsewhere can be added, and of what shape."""
        return self.context.kv

    async def add_cells(self, start: int, keys: np.ndarray, values: np.ndarray) -> None:
        """Have cells wait behind what the context holds; those of the back come first.

        Args:
            start: position of the first one; behind the last one, those that wait begin, if any do.
            keys: float32 of shape (layers, cells, KV heads, head size), with RoPE, as vLLM has them.
            values: the same of values.

        Raises:
            InvalidCells: the arrays are not what they have to be.
            DeviceEngineFailed: they do not end where others begin, or llama.cpp does not take them. After either,
                no cells wait any more, and the context holds what it held.
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
        """Put the cells that wait behind what the context holds, which then is `ids`.

        It may hold some of the cells' tokens already: these cells are left out.

        Raises:
            DeviceEngineFailed: it does not hold the first of `ids` as far as the cells begin, or the cells do not
                end with them. No cells wait any more, and the context holds what it held.
        """
        cells = self._cells()
        await self._thread.call(lambda: cells.join(ids))

    async def drop_cells(self) -> None:
        """Drop the cells that wait, if any do; harmless where none can."""
        if (cells := self.context.cells) is not None:
            await self._thread.call(cells.drop)

    async def compare_cells(self, start: int, keys: np.ndarray, values: np.ndarray) -> float:
        """Return how alike these cells and the context's own at the same positions are, -1 to 1.

        That is the cosine similarity of the layer where it is worst. Arguments are those of `add_cells`.

        Raises:
            InvalidCells: the arrays are not what they have to be.
            DeviceEngineFailed: the context does not hold these positions.
        """
        from pdd_llamacpp_adapter.engine.kv.comparison import likeness
        from pdd_llamacpp_adapter.engine.kv.sequence_state import read

        cells = self._cells()
        end = await anyio.to_thread.run_sync(cells.layout.check, start, keys, values)
        state = await self._thread.call(lambda: cells.own(start, end))
        return await anyio.to_thread.run_sync(lambda: likeness(read(cells.layout, state), keys, values))

    def _cells(self) -> ContextCells:
        context = self.context
        if context.cells is None:
            raise DeviceEngineFailed(f"the context takes in no cells: {context.kv.reason}")
        return context.cells

    def _found_by_next(self) -> SavedMemory | LlamaContext:
        """Return what has the ids and the history that an answer would find now."""
        return self.context if self._aside is None else self._aside
