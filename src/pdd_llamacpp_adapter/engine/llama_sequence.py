"""What a sequence of a llama.cpp context holds: the ids of one text, and cells that wait to be joined to them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions
import numpy as np

from pdd_core.errors import ContextOverflow, DeviceEngineFailed
from pdd_llamacpp_adapter.engine import llama_log
from pdd_llamacpp_adapter.engine.tasks import Part

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from pdd_llamacpp_adapter.engine.context import LlamaContext
    from pdd_llamacpp_adapter.engine.history import RefinedHistory
    from pdd_llamacpp_adapter.engine.kv.context_cells import ContextCells


class LlamaSequence:
    """Sequence `number` of `context`."""

    def __init__(self, context: LlamaContext, number: int) -> None:
        self.context = context
        self.number = number
        self.ids: list[int] = []
        """What the memory holds; agrees with llama.cpp's own count after every call, failed ones included."""
        self.history: RefinedHistory | None = None
        """The refined prompt that the first of `ids` are; None where they are none."""
        self.cells: ContextCells | None = None
        """Those that wait; None where it takes in none."""

    def check(self, ids: Sequence[int]) -> None:
        """Raise ContextOverflow where there is no room for `ids`, and DeviceEngineFailed where one is none."""
        if len(self.ids) + len(ids) > self.context.n_ctx:
            raise ContextOverflow(
                f"{len(self.ids)} + {len(ids)} tokens do not fit a context of {self.context.n_ctx}"
            )
        if not (min(ids) >= 0 and max(ids) < self.context.n_vocab):
            raise DeviceEngineFailed(f"a token id lies outside the model's {self.context.n_vocab} tokens")

    def decode(self, ids: Sequence[int], *, want_logits: bool, outputs: Collection[int] = ()) -> np.ndarray | None:
        """Process `ids` behind what the memory holds, in one llama_decode.

        Returns the last token's logits, float32 of shape (n_vocab,), a copy; None unless wanted. Those of the
        indices in `outputs` can be read with `LlamaContext.logits_at` until the next call.

        Raises:
            ContextOverflow: no room for them; nothing was done.
            DecodeAborted: told to stop; the memory holds what it held before.
            DeviceEngineFailed: any other return code; the memory holds what it held before.
        """
        part = Part.of(self, ids, outputs, want_logits=want_logits)
        self.context.decode([part])
        # llama.cpp overwrites its own with the next decode
        return part.logits_at(len(ids) - 1).copy() if want_logits else None

    @property
    def most_drafted(self) -> int:
        """Tokens that may be processed behind the next one and dropped again; 0 where the model cannot drop any.

        A memory with a sliding window drops old cells for new ones; those that it has to keep are not among them
        if all of the batch is computed at once, which nobody knows where other answers have parts in it.
        """
        context = self.context
        forgets = context.window > 0 and not context.params.swa_full
        if not context.drops or (forgets and len(context.sequences) > 1):
            return 0
        outputs = context.most_outputs // len(context.sequences)
        most = min(context.n_batch, context.n_ubatch, outputs, context.n_ctx - len(self.ids)) - 1
        first = int(L.llama_memory_seq_pos_min(context.memory, self.number))
        return most if first <= 0 else min(most, len(self.ids) + 1 - context.window - first)

    def rewind(self, length: int) -> int:
        """Keep the first `length` tokens, or none where that cannot be had exactly. Returns how many are kept.

        Cells that wait stay where some tokens are kept.

        With a sliding window, llama.cpp drops old cells yet reports success for a rewind that needs them.
        """
        if length and self._holds_window(length) and self._remove(length):
            del self.ids[length:]
            if self.held() == length == len(self.ids):
                if self.history is not None and length < len(self.history.ids):
                    self.history = None
                return length
        if not (self.ids or self.cells or self.held()):
            return 0
        self._remove(0)
        if self.cells is not None:
            self.cells.drop()
        self.ids.clear()
        self.history = None
        self.context.clear_if_empty()
        return 0

    def undo(self, length: int) -> None:
        """Drop what a batch that failed behind `length` tokens has begun, and no cells that wait."""
        if length or not self.cells:
            self.rewind(length)
        else:
            self._remove(0)

    def _remove(self, begin: int) -> bool:
        return bool(L.llama_memory_seq_rm(self.context.memory, self.number, begin or -1, -1))

    def _holds_window(self, length: int) -> bool:
        first, window = int(L.llama_memory_seq_pos_min(self.context.memory, self.number)), self.context.window
        return first == 0 or (window > 0 and 0 <= first <= length - window)

    def held(self) -> int:
        """Return how many tokens llama.cpp says that it holds."""
        return int(L.llama_memory_seq_pos_max(self.context.memory, self.number)) + 1

    def state_size(self) -> int:
        """Return the bytes that `state` would have."""
        return int(L.llama_state_seq_get_size(self.context.handle, self.number))

    def state(self) -> np.ndarray:
        """Return a copy of the memory; raises as `state_of`."""
        return state_of(self.context.handle, self.number)

    def load(self, state: np.ndarray, ids: Sequence[int]) -> None:
        """Make `state` the memory, which holds `ids`.

        Raises:
            DeviceEngineFailed: llama.cpp does not take it; the memory is then empty.
        """
        self.rewind(0)
        taken = is_taken(self.context.handle, self.number, state)
        self.ids.extend(ids)
        if not taken or self.held() != len(ids):
            self.rewind(0)
            raise DeviceEngineFailed(f"llama.cpp does not take its memory back: {llama_log.reason()}")


def state_of(handle: Any, number: int) -> np.ndarray:
    """Return a copy of what sequence `number` of a context holds, in llama.cpp's own form, uint8.

    Raises:
        DeviceEngineFailed: llama.cpp cannot make one.
    """
    llama_log.forget()
    state: np.ndarray = np.empty(L.llama_state_seq_get_size(handle, number), dtype=np.uint8)
    if L.llama_state_seq_get_data(handle, _pointer(state), state.size, number) != state.size:
        raise DeviceEngineFailed(f"llama.cpp cannot copy its memory: {llama_log.reason()}")
    return state


def is_taken(handle: Any, number: int, state: np.ndarray) -> bool:
    """Have the sequence hold `state` instead; return whether llama.cpp takes it. If not, its log says why."""
    llama_log.forget()
    return bool(L.llama_state_seq_set_data(handle, _pointer(state), state.size, number) == state.size)


def _pointer(state: np.ndarray) -> Any:
    return state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
