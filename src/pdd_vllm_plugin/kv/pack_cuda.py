"""Packs a prompt's cells on the GPU, straight out of the paged cache: one kernel for the keys, one for the values.

On a CPU, packing at a GPU's pace takes ten cores, and float32 copies of a prompt take gigabytes. The kernel
reads what the model wrote, and writes what goes to the host. It rounds as `pdd_core.kv.packing` does. A sum may
differ from numpy's in its last bit. Of two values that are largest with opposite signs, it takes the positive one.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import triton
import triton.language as tl

from pdd_core.kv.cell_types import BLOCK, CellType
from pdd_core.kv.geometry import PIECE_TOKENS
from pdd_core.kv.rotation import hadamard

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from pdd_core.kv.geometry import KVGeometry

_TILE = 32
"""Tokens of one program. A piece is whole tiles."""
_KINDS = {CellType.F16: 0, CellType.Q8_0: 1, CellType.Q4_0: 2}


def pack(
    caches: Sequence[Tensor],
    pointers: Tensor,
    layouts: Sequence[Any],
    blocks: Tensor,
    tokens: int,
    geometry: KVGeometry,
) -> Tensor:
    """Queue the packing on the current stream; return the payloads of all pieces, front to back.

    Args:
        caches: each layer's cache tensor, all of one shape and type.
        pointers: (layers,) int64 on the GPU: their data pointers.
        layouts: of the keys and of the values, with regular strides.
        blocks: (n,) int64 on the GPU: ids of the request's blocks, as the kernel counts them.
        tokens: cells from the prompt's begin on.
        geometry: types and rotations. Layers and heads are those of the caches.

    Returns:
        uint8 on the GPU, as `pdd_core.kv.pieces.packed_part` makes each piece.
    """
    first, size = caches[0], geometry.head_size
    heads = layouts[0].shape[1]
    kinds = (geometry.key_type, geometry.value_type)
    widths = [heads * kind.row_bytes(size) for kind in kinds]
    packed = torch.empty(tokens * len(caches) * sum(widths), dtype=torch.uint8, device=first.device)
    grid = (triton.cdiv(tokens, _TILE), len(caches), heads)
    rotations = (geometry.key_rotation, geometry.value_rotation)
    for index, (layout, kind, rotation) in enumerate(zip(layouts, kinds, rotations, strict=True)):
        _pack[grid](
            pointers, first, blocks, packed, _matrix(size, rotation, first.dtype, first.device), tokens,
            first.stride(0), *layout.strides, layout.origin, layout.block_size,
            len(caches), sum(widths), widths[0] if index else 0, widths[index], kind.row_bytes(size),
            rotation**-0.5,
            SIZE=size, PADDED=triton.next_power_of_2(size), ROTATES=rotation > 1, KIND=_KINDS[kind],
            TILE=_TILE, PIECE=PIECE_TOKENS, BLOCK_BYTES=kind.row_bytes(BLOCK), EXACT=first.dtype is torch.float32,
        )  # fmt: skip
    return packed


@cache
def _matrix(size: int, rotation: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return a head's rotation without its scale: of 1, -1 and 0, which every type has exactly."""
    signs = np.sign(hadamard(rotation)) if rotation > 1 else np.eye(1)
    whole = np.kron(np.eye(size // len(signs)), signs)
    return torch.from_numpy(whole.astype(np.float32)).to(device=device, dtype=dtype)


@triton.jit  # type: ignore[untyped-decorator]
def _pack(  # type: ignore[no-untyped-def]
    pointers, like, blocks, packed, matrix, tokens,
    block_stride, token_stride, head_stride, element_stride, origin, block_size,
    layers, layer_width, begin, width, row_bytes,
    scale,
    SIZE: tl.constexpr, PADDED: tl.constexpr, ROTATES: tl.constexpr, KIND: tl.constexpr,
    TILE: tl.constexpr, PIECE: tl.constexpr, BLOCK_BYTES: tl.constexpr, EXACT: tl.constexpr,
):  # fmt: skip
    """Pack one head of one layer of TILE tokens."""
    token = tl.program_id(0) * TILE + tl.arange(0, TILE)
    layer, head = tl.program_id(1), tl.program_id(2)
    here = token < tokens
    element = tl.arange(0, PADDED)
    cache = tl.load(pointers + layer).to(tl.pointer_type(like.dtype.element_ty))
    block = tl.load(blocks + token // block_size, mask=here, other=0)
    row = block * block_stride + token % block_size * token_stride + head * head_stride + origin
    inside = here[:, None] & (element < SIZE)[None, :]
    values = tl.load(cache + row[:, None] + (element * element_stride)[None, :], mask=inside, other=0.0)
    if ROTATES:
        turn = tl.load(matrix + element[:, None] * SIZE + element[None, :])
        if EXACT:
            turned = tl.dot(values, turn, input_precision="ieee") * scale
        else:
            turned = tl.dot(values, turn) * scale
    else:
        turned = values.to(tl.float32)
    # piece, then layer, then keys before values, then token, then head
    piece = token // PIECE * PIECE
    count = tl.minimum(tokens - piece, PIECE).to(tl.int64)
    at = piece.to(tl.int64) * layers * layer_width + layer * count * layer_width
    at += begin * count + (token - piece) * width + head * row_bytes
    if KIND == 0:
        places = packed + at[:, None] + 2 * element[None, :]
        tl.store(places.to(tl.pointer_type(tl.float16)), turned.to(tl.float16), mask=inside)
    else:
        n_blocks: tl.constexpr = PADDED // 32
        one = tl.reshape(turned, (TILE, n_blocks, 32))
        number = tl.arange(0, n_blocks)
        kept = here[:, None] & (number < SIZE // 32)[None, :]
        most, least = tl.max(one, axis=2), tl.min(one, axis=2)
        if KIND == 1:
            step = tl.div_rn(tl.maximum(most, -least), 127.0)
        else:
            step = tl.where(most >= -least, most, least) / -8.0
        inverse = tl.where(step == 0.0, 0.0, tl.div_rn(1.0, step))
        places = packed + at[:, None] + number[None, :] * BLOCK_BYTES
        tl.store(places.to(tl.pointer_type(tl.float16)), step.to(tl.float16), mask=kept)
        scaled = one * inverse[:, :, None]
        if KIND == 1:
            # C's roundf: halves go away from zero
            whole = tl.where(scaled < 0, tl.ceil(scaled - 0.5), tl.floor(scaled + 0.5)).to(tl.int8)
            to = places[:, :, None] + 2 + tl.arange(0, 32)[None, None, :]
            tl.store(to, whole.to(tl.uint8, bitcast=True), mask=kept[:, :, None])
        else:
            whole = tl.minimum((scaled + 8.5).to(tl.int32), 15)
            pairs = tl.permute(tl.reshape(whole, (TILE, n_blocks, 2, 16)), (0, 1, 3, 2))
            low, high = tl.split(pairs)
            to = places[:, :, None] + 2 + tl.arange(0, 16)[None, None, :]
            tl.store(to, (low | high << 4).to(tl.uint8), mask=kept[:, :, None])
