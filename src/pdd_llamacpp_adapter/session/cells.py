"""Cells of the cloud's KV cache in numbers, as the device's engine takes them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.kv.pieces import unpacked_part

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_core.kv.frames import Frame
    from pdd_core.kv.geometry import KVGeometry


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Neighbouring cells, unpacked."""

    start: int
    """Position of the first one."""
    keys: np.ndarray
    """float32 of shape (layers, cells, KV heads, head size)."""
    values: np.ndarray
    """The same of values."""

    @property
    def end(self) -> int:
        """Position behind the last one."""
        return self.start + int(self.keys.shape[1])

    def cut(self, start: int, end: int) -> Cells:
        """Return those of them that are from `start` to `end`."""
        first, last = max(start - self.start, 0), max(end - self.start, 0)
        return Cells(self.start + first, self.keys[:, first:last], self.values[:, first:last])


def unpacked(parts: Sequence[Frame], geometry: KVGeometry) -> Cells:
    """Return the piece that `parts` make together. Takes milliseconds.

    Raises:
        InvalidCells: a number is not finite.
    """
    tokens = parts[0].tokens
    shape = (geometry.num_layers, tokens, geometry.num_kv_heads, geometry.head_size)
    keys, values = np.empty(shape, dtype=np.float32), np.empty(shape, dtype=np.float32)
    for frame in parts:
        share = geometry.parts[frame.part]
        place = (slice(*share.layers), slice(None), slice(*share.heads))
        keys[place], values[place] = unpacked_part(frame.payload, tokens, frame.part, geometry)
    return Cells(parts[0].start, keys, values)
