"""The rotation that spreads a head's outliers over its elements before they are packed into few bits.

It is llama.cpp's own for quantised caches (llama-kv-cache.cpp, ``attn_rot_k`` and ``attn_rot_v``): a Hadamard
matrix, orthonormal and symmetric, hence its own inverse.
"""

from __future__ import annotations

from functools import cache

import numpy as np

LEAST = 64
"""Heads whose size is no multiple of it are not rotated."""


def rotation_size(head_size: int, *, values: bool) -> int:
    """Return the size of the pieces of a head that are rotated; 1 where it is not.

    For keys it is the largest power of two that divides the head's size, for values 64.
    """
    if head_size % LEAST:
        return 1
    return LEAST if values else head_size & -head_size


@cache
def hadamard(size: int) -> np.ndarray:
    """Return the matrix, float32 of shape (size, size); `size` is a power of two."""
    matrix = np.ones((1, 1), dtype=np.float32)
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    matrix /= np.sqrt(np.float32(size))
    matrix.flags.writeable = False
    return matrix


def rotated(values: np.ndarray, size: int) -> np.ndarray:
    """Rotate the last axis of `values`, float32, in pieces of `size`. Twice is the identity."""
    if size == 1:
        return values
    turned: np.ndarray = (values.reshape(-1, size) @ hadamard(size)).reshape(values.shape)
    return turned
