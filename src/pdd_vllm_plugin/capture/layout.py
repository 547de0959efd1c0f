"""Where keys and values lie in a KV cache block: found out by writing known numbers with the backend's own update.

Layouts differ between backends and releases (packed, tiled, heads first or tokens first); none is assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from pdd_core.errors import UnsupportedDeployment

if TYPE_CHECKING:
    from torch import Tensor

_BASE = 128
"""Digits below this are exact in every floating point type a cache can have, bfloat16 included."""


@dataclass(frozen=True, slots=True)
class CacheLayout:
    """Reads keys, or values, out of one kind of cache tensor, whose first dimension is blocks."""

    block_size: int
    """Tokens of a block, as the kernel counts them."""
    shape: tuple[int, int, int]
    """(block_size, n_kv_heads, head_size)."""
    extent: int
    """Elements of storage from a block's first to its last."""
    index: Tensor
    """(block_size * n_kv_heads * head_size,) int64: offsets of the elements from their block's begin."""
    strides: tuple[int, int, int] | None
    """The same as strides of token, head and element, where they are regular; the first offset is `index[0]`."""
    origin: int

    def rows(self, kv_cache: Tensor, blocks: Tensor, length: int) -> Tensor:
        """Return the first `length` keys, or values, of a request, (length, n_kv_heads, head_size).

        Args:
            kv_cache: the layer's cache tensor.
            blocks: (n_blocks,) ids of the request's blocks, on the cache's device.
            length: tokens.
        """
        count, offset = kv_cache.shape[0], kv_cache.storage_offset()
        if self.strides is not None:
            view = kv_cache.as_strided(
                (count, *self.shape), (kv_cache.stride(0), *self.strides), offset + self.origin
            )
            return view.index_select(0, blocks).flatten(0, 1)[:length]
        chosen = self.copied(kv_cache, blocks).index_select(1, self.index)
        return chosen.view(-1, *self.shape[1:])[:length]

    def copied(self, kv_cache: Tensor, blocks: Tensor) -> Tensor:
        """Return a copy of whole blocks, (n_blocks, extent): a cache of its own to `rows`.

        It has keys and values where a block has both in one piece, see `in_one_piece`.
        """
        count, offset = kv_cache.shape[0], kv_cache.storage_offset()
        return kv_cache.as_strided((count, self.extent), (kv_cache.stride(0), 1), offset).index_select(0, blocks)

    def in_one_piece(self, kv_cache: Tensor) -> bool:
        """Whether nothing of other blocks lies between a block's first element and its last."""
        return bool(self.extent <= kv_cache.stride(0))


def probe_layout(layer: Any, impl: Any, kv_cache: Tensor, *, values: bool = False) -> CacheLayout:
    """Find out how a cache's keys lie, or its `values`.

    Each element is numbered; the numbers are written digit by digit into a scratch block of the same strides.

    Raises:
        UnsupportedDeployment: they do not come back one by one, as from a quantised cache.
    """
    heads, size = int(impl.num_kv_heads), int(impl.head_size)
    inner, strides = tuple(kv_cache.shape[1:]), tuple(kv_cache.stride()[1:])
    extent = 1 + sum((n - 1) * s for n, s in zip(inner, strides, strict=True))
    block_size = _numel(inner) // (2 * heads * size)
    total = block_size * heads * size
    numbers = torch.arange(1, total + 1, dtype=torch.int64, device=kv_cache.device)
    slots = torch.arange(block_size, dtype=torch.int64, device=kv_cache.device)
    found = torch.zeros(extent, dtype=torch.int64, device=kv_cache.device)
    digit = 1
    while digit <= total:
        flat = torch.zeros(extent, dtype=kv_cache.dtype, device=kv_cache.device)
        scratch = flat.as_strided((1, *inner), (extent, *strides))
        wanted = ((numbers // digit) % _BASE).to(kv_cache.dtype).view(block_size, heads, size)
        nothing = torch.zeros_like(wanted)
        key, value = (nothing, wanted) if values else (wanted, nothing)
        impl.do_kv_cache_update(layer, key, value, scratch, slots)
        found += flat.to(torch.int64) * digit
        digit *= _BASE
    where = torch.nonzero(found).squeeze(-1)
    if where.numel() != total or not torch.equal(found[where].sort().values, numbers):
        raise UnsupportedDeployment(
            f"the KV cache of {type(impl).__name__} does not give keys back as they were written "
            f"(cache dtype {kv_cache.dtype}): attention cannot be captured; set additional_config.pdd.refine off"
        )
    index = torch.empty(total, dtype=torch.int64, device=kv_cache.device)
    index[found[where] - 1] = where
    shape = (block_size, heads, size)
    return CacheLayout(block_size, shape, extent, index, _strides(index, shape), int(index[0]))


def _strides(index: Tensor, shape: tuple[int, int, int]) -> tuple[int, int, int] | None:
    """Return the strides that give `index`, if there are any."""
    tokens, heads, size = shape
    cube = index.view(shape)
    token = int(cube[1, 0, 0] - cube[0, 0, 0]) if tokens > 1 else 0
    head = int(cube[0, 1, 0] - cube[0, 0, 0]) if heads > 1 else 0
    element = int(cube[0, 0, 1] - cube[0, 0, 0]) if size > 1 else 0
    if min(token, head, element) < 0:
        return None

    def steps(count: int, stride: int) -> Tensor:
        return torch.arange(count, device=index.device) * stride

    regular = (
        cube[0, 0, 0] + steps(tokens, token)[:, None, None] + steps(heads, head)[:, None] + steps(size, element)
    )
    return (token, head, element) if torch.equal(regular, cube) else None


def _numel(shape: tuple[int, ...]) -> int:
    product = 1
    for n in shape:
        product *= n
    return product
