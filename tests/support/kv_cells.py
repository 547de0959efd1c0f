"""A small model's cells, and the stream that has them."""

import zlib

import numpy as np

from pdd_core.kv.frames import END, header
from pdd_core.kv.geometry import KVGeometry
from pdd_core.kv.pieces import packed_part, pieces_between

WHOLE = (((0, 2), (0, 2)),)
BY_HEADS = ((0, 2), (0, 1)), ((0, 2), (1, 2))
"""Two tensor-parallel workers."""
BY_LAYERS = ((0, 1), (0, 2)), ((1, 2), (0, 2))
"""Two pipeline-parallel workers."""
FIELDS = {
    "num_layers": 2, "num_kv_heads": 2, "head_size": 32, "key_type": "q8_0", "value_type": "q4_0",
    "key_rotation": 1, "value_rotation": 1, "rope": {"theta": 1e4, "rotary_dim": 32},
}  # fmt: skip
"""Of `KVGeometry`, without its parts."""


def geometry(parts=WHOLE, **fields):
    parts = [{"layers": layers, "heads": heads} for layers, heads in parts]
    return KVGeometry.model_validate({**FIELDS, **fields, "parts": parts})


def cells(tokens, of):
    """Keys and values, float32 (layers, tokens, KV heads, head size)."""
    shape = of.num_layers, tokens, of.num_kv_heads, of.head_size
    both = np.random.default_rng(tokens).standard_normal((2, *shape), dtype=np.float32)
    return both[0], both[1]


def payload(keys, values, piece, number, of):
    part = of.parts[number]
    where = slice(*part.layers), slice(piece.start, piece.end), slice(*part.heads)
    return packed_part(keys[where], values[where], of)


def frames(tokens, of, start=0, end=None):
    """All frames of the cells from `start` to `end`, as bytes, the last one included."""
    keys, values = cells(tokens, of)
    made = []
    for piece in pieces_between(start, tokens if end is None else end):
        for number in range(len(of.parts)):
            packed = payload(keys, values, piece, number, of)
            made.append(header(number, piece.start, piece.tokens, zlib.crc32(packed)) + packed)
    return [*made, END]


def shelve(folders, handoff_id, tokens, of):
    """Write what the workers of an engine would have on their shelves, the file of each part into its folder."""
    from pdd_vllm_plugin.kv.shelf_file import ShelfFile

    keys, values = cells(tokens, of)
    for number, folder in enumerate(folders):
        pieces = ((piece, payload(keys, values, piece, number, of)) for piece in pieces_between(0, tokens))
        ShelfFile(folder, handoff_id).write(tokens, of.part_bytes(number), pieces)
