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


def rotated(values: np.ndarray, size: int) -> np.ndarray:
    """Rotate the last axis of `values`, float32, in pieces of `size`, a power of two. Twice is the identity.

    Sums and differences of halves, and no product of matrices: numpy leaves that to BLAS, whose threads wait for
    each other on every core, while llama.cpp or vLLM need those.
    """
    if size == 1:
        return values
    turned = values.reshape(-1, size).T.copy(order="C")
    other = np.empty_like(turned)
    half = 1
    while half < size:
        pairs, sums = turned.reshape(-1, 2, half, turned.shape[1]), other.reshape(-1, 2, half, turned.shape[1])
        np.add(pairs[:, 0], pairs[:, 1], out=sums[:, 0])
        np.subtract(pairs[:, 0], pairs[:, 1], out=sums[:, 1])
        turned, other, half = other, turned, 2 * half
    turned /= np.sqrt(np.float32(size))
    return np.ascontiguousarray(turned.T).reshape(values.shape)


@cache
def hadamard(size: int) -> np.ndarray:
    """Return the matrix that `rotated` multiplies by, float32 of shape (size, size); `size` is a power of two."""
    matrix: np.ndarray = rotated(np.eye(size, dtype=np.float32), size)
    matrix.flags.writeable = False
    return matrix
