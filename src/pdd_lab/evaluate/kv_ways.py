"""The ways of handing over a prompt's KV cache: with how many bits a cell is sent, or which cells are.

Keys and values are float32 of shape (layers, tokens, heads, head size), as the model's attention has them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import ModelError
from pdd_core.kv.cell_types import BLOCK, CellType
from pdd_core.kv.geometry import KVGeometry, KVPart, RopeGeometry
from pdd_core.kv.pieces import packed_part, unpacked_part
from pdd_core.kv.rotation import rotation_size
from pdd_core.refinement.refiners.attention import mean_pool
from pdd_core.refinement.refiners.base import indices, keep_count, protected_mask

if TYPE_CHECKING:
    from pdd_core.refinement.prompt import RefinePrompt

TYPES = {
    "f16": (CellType.F16, CellType.F16),
    "q8_0": (CellType.Q8_0, CellType.Q8_0),
    "k8v4": (CellType.Q8_0, CellType.Q4_0),
    "q4_0": (CellType.Q4_0, CellType.Q4_0),
}
"""Way -> the types of keys and values on the wire. All cells of the prompt are sent."""
SELECTED, ORACLE = "selected", "oracle"
SELECTIONS = (SELECTED, ORACLE)
"""Ways that send some of the cells, in F16: those that the end of the prompt attends to most, and those that the
answer will attend to most, which nobody can know. For comparison: nothing in the product does this."""
WAYS = (*TYPES, *SELECTIONS)
SHARE = 0.25
"""Of the prompt's cells that a selection sends."""
SINKS, END = 4, 16
"""The first and the last cells of a prompt, which every selection sends."""
POOL = 7
"""Tokens over which a selection's scores are smoothed."""


def cells_geometry(way: str, *, layers: int, heads: int, head_size: int) -> KVGeometry:
    """Return what the cells of a model look like on the wire.

    Raises:
        ModelError: heads of this size cannot be packed to the way's types.
    """
    key_type, value_type = TYPES.get(way, TYPES["f16"])
    few_bits = key_type is not CellType.F16
    if few_bits and head_size % BLOCK:
        raise ModelError(f"heads of {head_size} elements cannot be packed as {way}: they are no blocks of {BLOCK}")
    return KVGeometry(
        num_layers=layers,
        num_kv_heads=heads,
        head_size=head_size,
        key_type=key_type,
        value_type=value_type,
        key_rotation=rotation_size(head_size, values=False) if few_bits else 1,
        value_rotation=rotation_size(head_size, values=True) if few_bits else 1,
        # both ends are the same model here, and packing does not look at this
        rope=RopeGeometry(theta=1.0, rotary_dim=head_size),
        parts=[KVPart(layers=(0, layers), heads=(0, heads))],
    )


def sent(keys: np.ndarray, values: np.ndarray, way: str) -> tuple[np.ndarray, np.ndarray]:
    """Return what the device has of keys and values that were packed, sent and unpacked.

    Raises:
        ModelError: heads of this size cannot be packed to the way's types.
    """
    layers, tokens, heads, head_size = keys.shape
    geometry = cells_geometry(way, layers=layers, heads=heads, head_size=head_size)
    return unpacked_part(memoryview(packed_part(keys, values, geometry)), tokens, 0, geometry)


def best_cells(scores: np.ndarray, prompt: RefinePrompt, share: float) -> list[int]:
    """Return which cells a selection sends, increasing: a `share` of the prompt's, the same ones of all layers.

    As SnapKV chooses (Li et al., 2024, arXiv:2404.14469), with one choice for all heads and layers: single tokens
    by their smoothed scores. What refinement protects is sent as well.

    Args:
        scores: attention to each token, of shape (prompt tokens,).
        prompt: the full prompt.
        share: of its tokens, above 0 and at most 1.
    """
    keep = protected_mask(prompt)
    raw = np.where(keep, np.float32(0), scores)
    keep[:SINKS] = keep[-END:] = True
    left = keep_count(len(prompt), share) - int(keep.sum())
    if left > 0:
        free = np.flatnonzero(~keep)
        keep[free[np.lexsort((-raw[free], -mean_pool(raw, POOL)[free]))[:left]]] = True
    return indices(keep)
