"""llama.cpp's own form of a sequence (``llama_state_seq_get_data``, ``_set_data``), written and read by hand.

The form is that of ``llama_kv_cache::state_write`` (src/llama-kv-cache.cpp), little-endian:

    u32 0xaf143cd8, i32 sequence
    u32 streams (1), u32 cells
    for each cell: i32 position, u32 1, i32 sequence
    u32 whether values are transposed, u32 layers
    for each layer: i32 type, u64 bytes of a row, keys: a row for each cell
    for each layer, with flash attention: i32 type, u64 bytes of a row, values: a row for each cell
    for each layer, without:              i32 type, u32 bytes of an element, u32 elements, (elements, cells)

It has no version. llama.cpp compares types, sizes and the number of layers, and takes in all else: positions with
holes, and numbers that are not finite. So all of it is checked here, before anything is allocated.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import InvalidCells
from pdd_core.kv.cell_types import CellType
from pdd_core.kv.packing import pack, unpack
from pdd_core.kv.rotation import rotated, rotation_size
from pdd_llamacpp_adapter.engine.kv.key_order import KeyOrder, in_halves, in_pairs

if TYPE_CHECKING:
    from collections.abc import Callable

    from pdd_llamacpp_adapter.engine.kv.kv_support import KVShape

_MAGIC = 0xAF143CD8
_FIRST = struct.Struct("<IiII")
_CELL = np.dtype([("position", "<i4"), ("sequences", "<u4"), ("sequence", "<i4")])
_SECOND = struct.Struct("<II")
_ROWS = struct.Struct("<iQ")
_COLUMNS = struct.Struct("<iII")
"""As long as `_ROWS`: values take the same bytes, transposed or not."""
GGML_TYPES = {CellType.F16: 1, CellType.Q4_0: 2, CellType.Q8_0: 8}
"""``enum ggml_type``."""
_F16_MOST = 65504.0
_STEPS = {CellType.F16: 1, CellType.Q8_0: 127, CellType.Q4_0: 8}
"""By what a block's largest number is divided to make its scale, which is a float16."""


@dataclass(frozen=True, slots=True)
class CellLayout:
    """How one context stores its cells."""

    shape: KVShape
    kind: CellType
    """Of keys and values."""
    transposed: bool
    """Values are transposed: without flash attention. Quantised ones never are."""
    room: int
    """Cells that fit the context."""
    pack: Callable[[np.ndarray, CellType], np.ndarray] = pack
    """As `pdd_core.kv.cell_types.pack`, which it is where ggml is not at hand."""

    @property
    def row_bytes(self) -> int:
        """Bytes of one layer's keys of one cell; its values have as many."""
        return self.shape.num_kv_heads * self.kind.row_bytes(self.shape.head_size)

    def rotation(self, *, values: bool) -> int:
        """Return the size of the pieces of a head that llama.cpp rotates; 1: it does not."""
        return 1 if self.kind is CellType.F16 else rotation_size(self.shape.head_size, values=values)

    def state_bytes(self, cells: int) -> int:
        """Return the bytes of a state of `cells`."""
        blocks = 2 * self.shape.num_layers * (_ROWS.size + cells * self.row_bytes)
        return _FIRST.size + cells * _CELL.itemsize + _SECOND.size + blocks

    def check(self, start: int, keys: np.ndarray, values: np.ndarray) -> int:
        """Return the position behind the last of these cells.

        Args:
            start: position of the first one.
            keys: float32 of shape (layers, cells, KV heads, head size), with RoPE, as vLLM has them.
            values: the same of values.

        Raises:
            InvalidCells: they are of another type or shape, do not fit the context, or hold a number that is not
                finite or that the cache's type cannot hold.
        """
        ours = self.shape
        if not isinstance(start, int) or isinstance(start, bool) or start < 0:
            raise InvalidCells(f"no cells begin at position {start!r}")
        for what, array in (("keys", keys), ("values", values)):
            if not isinstance(array, np.ndarray) or array.dtype != np.float32 or array.ndim != 4:
                raise InvalidCells(f"{what} are no float32 array of four axes")
            if array.shape != (ours.num_layers, keys.shape[1], ours.num_kv_heads, ours.head_size):
                raise InvalidCells(f"{what} of shape {array.shape} are not of this model, or not as many as keys")
        end = start + int(keys.shape[1])
        if not start < end <= self.room:
            raise InvalidCells(f"no context of {self.room} cells has those from {start} to {end}")
        for what, array in (("keys", keys), ("values", values)):
            # a rotation may put all of a piece into one element
            spread = math.sqrt(self.rotation(values=array is values))
            most = min(_F16_MOST, _F16_MOST * _STEPS[self.kind] / spread)
            if not (array.max() <= most and array.min() >= -most):  # not so either where one is not a number
                raise InvalidCells(f"{what} hold a number that is not finite, or beyond {most:.0f}")
        return end


@dataclass(frozen=True, slots=True, eq=False)
class Cells:
    """Cells as a state has them, by position."""

    positions: np.ndarray
    """int32, increasing."""
    keys: np.ndarray
    """float32 of shape (layers, cells, KV heads, head size), in vLLM's order."""
    values: np.ndarray
    """The same."""


def written(layout: CellLayout, start: int, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the state that holds these cells, uint8, for any sequence.

    Args:
        layout: the context's.
        start: position of the first cell; the others follow it.
        keys: as `CellLayout.check` wants them.
        values: the same.

    Raises:
        InvalidCells: see `CellLayout.check`.
    """
    end = layout.check(start, keys, values)
    count = end - start
    state = np.empty(layout.state_bytes(count), dtype=np.uint8)
    _FIRST.pack_into(state.data, 0, _MAGIC, 0, 1, count)
    cells = state[_FIRST.size : _FIRST.size + count * _CELL.itemsize].view(_CELL)
    cells["position"], cells["sequences"], cells["sequence"] = np.arange(start, end), 1, 0
    _SECOND.pack_into(state.data, _FIRST.size + cells.nbytes, layout.transposed, layout.shape.num_layers)
    for are_values, array in ((False, keys), (True, values)):
        heads, numbers = _blocks(layout, state, count, values=are_values)
        heads[:] = _head(layout, values=are_values)
        if layout.kind is CellType.F16:
            half = layout.pack(array, layout.kind).view("<f2")
            if are_values or layout.shape.order is KeyOrder.HALVES:
                numbers[:] = half
            else:  # as `in_pairs`, several times as fast
                split = layout.shape.head_size // 2
                numbers[..., 0::2], numbers[..., 1::2] = half[..., :split], half[..., split:]
        else:
            ordered = array if are_values or layout.shape.order is KeyOrder.HALVES else in_pairs(array)
            numbers[:] = layout.pack(rotated(ordered, layout.rotation(values=are_values)), layout.kind)
    return state


def read(layout: CellLayout, state: np.ndarray) -> Cells:
    """Return the cells of a state that llama.cpp made, in the order of their positions.

    Raises:
        InvalidCells: llama.cpp's form is not the one that is known here, or these are cells of another context.
    """
    ours = layout.shape
    magic, _, streams, count = _FIRST.unpack_from(state.data) if state.size >= _FIRST.size else (0, 0, 0, 0)
    if not 0 < count <= layout.room or state.size != layout.state_bytes(count):
        raise InvalidCells(f"llama.cpp's state of {state.size} bytes is not one of {count} cells of this context")
    cells = state[_FIRST.size : _FIRST.size + count * _CELL.itemsize].view(_CELL)
    transposed, num_layers = _SECOND.unpack_from(state.data, _FIRST.size + cells.nbytes)
    expected = (_MAGIC, 1, layout.transposed, ours.num_layers)
    if (magic, streams, transposed, num_layers) != expected or (cells["sequences"] != 1).any():
        raise InvalidCells("llama.cpp's state does not have the form that is known of it")
    order = np.argsort(cells["position"], kind="stable")
    positions = cells["position"][order]
    if positions[0] < 0 or (np.diff(positions) <= 0).any():
        raise InvalidCells("llama.cpp's state has a position twice, or one before the first")
    found = []
    for are_values in (False, True):
        heads, numbers = _blocks(layout, state, count, values=are_values)
        if (heads != _head(layout, values=are_values)).any():
            raise InvalidCells("llama.cpp's state has rows of another type or size")
        numbers = numbers[:, order]
        if layout.kind is CellType.F16:
            array = numbers.astype(np.float32)
        else:
            array = rotated(unpack(numbers, layout.kind), layout.rotation(values=are_values))
        found.append(array if are_values or ours.order is KeyOrder.HALVES else in_halves(array))
    return Cells(positions, *found)


def _head(layout: CellLayout, *, values: bool) -> np.ndarray:
    """Return what is before each layer's keys or values, uint8."""
    kind = GGML_TYPES[layout.kind]
    if values and layout.transposed:
        return np.frombuffer(_COLUMNS.pack(kind, 2, layout.row_bytes // 2), dtype=np.uint8)
    return np.frombuffer(_ROWS.pack(kind, layout.row_bytes), dtype=np.uint8)


def _blocks(layout: CellLayout, state: np.ndarray, count: int, *, values: bool) -> tuple[np.ndarray, np.ndarray]:
    """Return views of all layers' keys or values: what is before each, and the numbers by cell.

    The first is uint8 of shape (layers, bytes). The second has the shape (layers, cells, heads, elements) and is
    float16, or (layers, cells, heads, packed bytes) and uint8.
    """
    shape, row = layout.shape, layout.row_bytes
    block = _ROWS.size + count * row
    begin = _FIRST.size + count * _CELL.itemsize + _SECOND.size + values * shape.num_layers * block
    before = np.ndarray((shape.num_layers, _ROWS.size), np.uint8, state.data, begin, (block, 1))
    size = layout.kind.row_bytes(shape.head_size)
    kind, item = (np.dtype("<f2"), 2) if layout.kind is CellType.F16 else (np.dtype(np.uint8), 1)
    axes = (shape.num_layers, count, shape.num_kv_heads, size // item)
    if values and layout.transposed:
        strides = (block, item, shape.head_size * count * item, count * item)
    else:
        strides = (block, row, size, item)
    return before, np.ndarray(axes, kind, state.data, begin + _ROWS.size, strides)
