"""A prompt's cells in pieces: which tokens each has, and what its payload is in numbers.

The payload of one part of a piece: for each of its layers, in order, the keys of all its tokens, of shape (tokens,
heads, packed bytes), and then the values, of the same shape.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import InvalidCells
from pdd_core.kv.geometry import PIECE_TOKENS
from pdd_core.kv.packing import pack, unpack
from pdd_core.kv.rotation import rotated

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pdd_core.kv.geometry import KVGeometry


@dataclass(frozen=True, slots=True)
class Piece:
    """Positions of the prompt, half-open."""

    start: int
    end: int

    @property
    def tokens(self) -> int:
        """How many."""
        return self.end - self.start


def pieces_between(start: int, end: int) -> Iterator[Piece]:
    """Yield the pieces of the cells from `start` to `end`, the last first; the outer ones may be cut."""
    while end > start:
        begin = max(start, (end - 1) // PIECE_TOKENS * PIECE_TOKENS)
        yield Piece(begin, end)
        end = begin


def packed_part(keys: np.ndarray, values: np.ndarray, geometry: KVGeometry) -> bytes:
    """Pack one part of a piece.

    Args:
        keys: float32 of shape (layers, tokens, heads, head size), as the model's attention has them, with RoPE.
        values: the same of values.
        geometry: the types and rotations.
    """
    layers = zip(
        pack(rotated(keys, geometry.key_rotation), geometry.key_type),
        pack(rotated(values, geometry.value_rotation), geometry.value_type),
        strict=True,
    )
    return b"".join(rows.tobytes() for layer in layers for rows in layer)


def unpacked_part(
    payload: memoryview, tokens: int, number: int, geometry: KVGeometry
) -> tuple[np.ndarray, np.ndarray]:
    """Undo `packed_part` for part `number`: return keys and values, float32 (layers, tokens, heads, head size).

    Raises:
        InvalidCells: the payload's size is not that of `tokens` cells, or a number is not finite.
    """
    part = geometry.parts[number]
    if len(payload) != tokens * geometry.part_bytes(number):
        raise InvalidCells(f"{len(payload)} bytes are not {tokens} cells of part {number}")
    layers = np.frombuffer(payload, dtype=np.uint8).reshape(part.num_layers, -1)
    size = geometry.key_type.row_bytes(geometry.head_size)
    split = tokens * part.num_heads * size
    packed_keys = layers[:, :split].reshape(part.num_layers, tokens, part.num_heads, size)
    packed_values = layers[:, split:].reshape(part.num_layers, tokens, part.num_heads, -1)
    with np.errstate(invalid="ignore", over="ignore"):
        keys = rotated(unpack(packed_keys, geometry.key_type), geometry.key_rotation)
        values = rotated(unpack(packed_values, geometry.value_type), geometry.value_rotation)
    if not (np.isfinite(keys).all() and np.isfinite(values).all()):
        raise InvalidCells("a key or value is not a finite number")
    return keys, values
