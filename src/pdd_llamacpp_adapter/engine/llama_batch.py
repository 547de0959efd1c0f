"""llama.cpp's batch: tokens of one or several sequences, in memory that numpy owns."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_llamacpp_adapter.engine.tasks import Part


class LlamaBatch:
    """A ``llama_batch`` of at most `capacity` tokens."""

    def __init__(self, capacity: int) -> None:
        self._token, self._position, self._sequence = (np.zeros(capacity, dtype=np.int32) for _ in range(3))
        self._one_each = np.ones(capacity, dtype=np.int32)
        self._wanted = np.zeros(capacity, dtype=np.int8)
        self._own = self._sequence.ctypes.data + self._sequence.itemsize * np.arange(capacity, dtype=np.uintp)
        """Per token, a pointer to its sequence: llama.cpp's tokens may have several."""
        fields: list[Any] = [self._token, None, self._position, self._one_each, self._own, self._wanted]
        kinds = [kind for name, kind in L.llama_batch._fields_ if name != "n_tokens"]
        pointers = [
            kind() if field is None else ctypes.cast(field.ctypes.data, kind)
            for field, kind in zip(fields, kinds, strict=True)
        ]
        self.handle = L.llama_batch(0, *pointers)
        """For llama.cpp."""

    def fill(self, parts: Sequence[Part]) -> None:
        """Put `parts` in, one behind the other, and tell each where it is."""
        row = 0
        for part in parts:
            end, past = row + len(part.ids), len(part.sequence.ids)
            self._token[row:end] = part.ids
            self._position[row:end] = np.arange(past, past + end - row)
            self._sequence[row:end] = part.sequence.number
            self._wanted[row:end] = 0
            for index in part.outputs:
                self._wanted[row + index] = 1
            part.row, row = row, end
        self.handle.n_tokens = row

    def wants(self, row: int) -> bool:
        """Whether the last `fill` asked for the logits of `row`."""
        return 0 <= row < self.handle.n_tokens and bool(self._wanted[row])
