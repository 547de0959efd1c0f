"""Packs keys and values to the types of llama.cpp's caches, bit by bit as ggml does, and unpacks them.

ggml's ``block_q8_0`` is a float16 scale d and 32 int8, ``block_q4_0`` a float16 scale and 16 bytes of two values
each: element i in the low half of byte i, element i + 16 in the high half (ggml-common.h, ggml-quants.c).
"""

from __future__ import annotations

import numpy as np

from pdd_core.kv.cell_types import BLOCK, CellType


def pack(values: np.ndarray, kind: CellType) -> np.ndarray:
    """Pack float32 of shape (..., elements) to uint8 of shape (..., bytes), as ``ggml_quantize_chunk`` does."""
    if kind is CellType.F16:
        return np.ascontiguousarray(values, dtype=np.float16).view(np.uint8)
    blocks = np.ascontiguousarray(values, dtype=np.float32).reshape(*values.shape[:-1], -1, BLOCK)
    if kind is CellType.Q8_0:
        scale = np.abs(blocks).max(axis=-1, keepdims=True) / np.float32(127.0)
        scaled = blocks * _inverse(scale)
        # C's roundf: halves go away from zero
        whole = np.trunc(scaled + np.copysign(np.float32(0.5), scaled)).astype(np.int8).view(np.uint8)
    else:
        largest = np.take_along_axis(blocks, np.abs(blocks).argmax(axis=-1)[..., None], axis=-1)
        scale = largest / np.float32(-8.0)
        scaled = np.minimum((blocks * _inverse(scale) + np.float32(8.5)).astype(np.int8), 15).astype(np.uint8)
        whole = scaled[..., : BLOCK // 2] | scaled[..., BLOCK // 2 :] << 4
    packed = np.concatenate([scale.astype(np.float16).view(np.uint8), whole], axis=-1)
    return packed.reshape(*values.shape[:-1], -1)


def _inverse(scale: np.ndarray) -> np.ndarray:
    # ggml compares with 0, and divides by what is left; but as a float16 each of these scales is 0
    tiny = np.abs(scale) < np.finfo(np.float32).tiny
    return np.where(tiny, np.float32(0.0), np.float32(1.0) / np.where(tiny, np.float32(1.0), scale))


def unpack(packed: np.ndarray, kind: CellType) -> np.ndarray:
    """Undo `pack`: uint8 of shape (..., bytes) to float32 of shape (..., elements)."""
    if kind is CellType.F16:
        return np.ascontiguousarray(packed).view(np.float16).astype(np.float32)
    blocks = packed.reshape(*packed.shape[:-1], -1, kind.row_bytes(BLOCK))
    scale = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    if kind is CellType.Q8_0:
        values = np.ascontiguousarray(blocks[..., 2:]).view(np.int8).astype(np.float32)
    else:
        halves = blocks[..., 2:]
        values = np.concatenate([halves & 15, halves >> 4], axis=-1).astype(np.float32) - np.float32(8.0)
    unpacked: np.ndarray = (values * scale).reshape(*packed.shape[:-1], -1)
    return unpacked
