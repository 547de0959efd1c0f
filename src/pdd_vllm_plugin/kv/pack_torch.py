"""What `pack_cuda` does, by torch's operations: for a GPU without Triton, or caches without regular strides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from pdd_core.kv.cell_types import BLOCK, CellType
from pdd_core.kv.geometry import PIECE_TOKENS
from pdd_core.kv.rotation import hadamard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pdd_core.kv.geometry import KVGeometry


def pack(
    caches: Sequence[Tensor],
    pointers: Tensor,
    layouts: Sequence[Any],
    blocks: Tensor,
    tokens: int,
    geometry: KVGeometry,
) -> Tensor:
    """Do `pdd_vllm_plugin.kv.pack_cuda.pack`, a layer at a time. `pointers` is not used."""
    del pointers
    kinds = (geometry.key_type, geometry.value_type)
    heads = layouts[0].shape[1]
    widths = [heads * kind.row_bytes(geometry.head_size) for kind in kinds]
    total = sum(widths)
    packed = torch.empty(tokens * len(caches) * total, dtype=torch.uint8, device=caches[0].device)
    whole = tokens // PIECE_TOKENS * PIECE_TOKENS
    # pieces of one size each: (pieces, layers, bytes)
    runs = [(0, whole, PIECE_TOKENS), (whole, tokens, tokens - whole)]
    rotations = (geometry.key_rotation, geometry.value_rotation)
    for begin, width, layout, kind, rotation in zip(
        (0, widths[0]), widths, layouts, kinds, rotations, strict=True
    ):
        for number, cache in enumerate(caches):
            rows = _packed_rows(_rotated(layout.rows(cache, blocks, tokens).float(), rotation), kind)
            for start, end, piece in runs:
                if end > start:
                    run = packed[start * len(caches) * total : end * len(caches) * total]
                    target = run.view(-1, len(caches), piece * total)[:, number]
                    target[:, piece * begin : piece * (begin + width)] = rows[start:end].view(-1, piece * width)
    return packed


def _rotated(values: Tensor, size: int) -> Tensor:
    if size == 1:
        return values
    matrix = torch.from_numpy(hadamard(size).copy()).to(values.device)
    return (values.reshape(-1, size) @ matrix).view(values.shape)


def _packed_rows(values: Tensor, kind: CellType) -> Tensor:
    """Pack float32 of shape (tokens, heads, elements) to uint8 of shape (tokens, bytes)."""
    if kind is CellType.F16:
        return values.to(torch.float16).flatten(1).view(torch.uint8)
    blocks = values.reshape(len(values), -1, BLOCK)
    largest = blocks.gather(-1, blocks.abs().argmax(dim=-1, keepdim=True))
    scale = largest.abs() / 127.0 if kind is CellType.Q8_0 else largest / -8.0
    scaled = blocks * torch.where(scale == 0, 0.0, 1.0 / scale)
    if kind is CellType.Q8_0:
        # C's roundf: halves go away from zero
        whole = torch.trunc(scaled + torch.copysign(torch.full_like(scaled, 0.5), scaled)).to(torch.int8)
        whole = whole.view(torch.uint8)
    else:
        nibbles = (scaled + 8.5).to(torch.uint8).clamp(max=15)
        whole = nibbles[..., : BLOCK // 2] | nibbles[..., BLOCK // 2 :] << 4
    return torch.cat([scale.to(torch.float16).view(torch.uint8), whole], dim=-1).flatten(1)
