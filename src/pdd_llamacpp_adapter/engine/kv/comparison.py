"""How alike a device's own cells and the cloud's are: whether models, files and layouts really are the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.engine.kv.sequence_state import Cells


def likeness(own: Cells, keys: np.ndarray, values: np.ndarray) -> float:
    """Return the cosine similarity of the layer where it is worst, of its keys or of its values, -1 to 1.

    Args:
        own: the device's cells.
        keys: the cloud's at the same positions, float32 of the same shape.
        values: the same.
    """
    worst = 1.0
    for ours, theirs in ((own.keys, keys), (own.values, values)):
        for one, other in zip(ours, theirs, strict=True):
            a, b = one.ravel().astype(np.float64), other.ravel().astype(np.float64)
            length = np.sqrt(np.sum(a * a) * np.sum(b * b))  # no `@`: BLAS takes every core for it
            worst = min(worst, float(np.sum(a * b) / length) if length else 0.0)
    return worst
