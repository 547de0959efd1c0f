"""Packed cells are those that were written into the cache, whatever its layout. No server: torch alone."""

import numpy as np
import pytest
import torch

from pdd_core.errors import UnsupportedDeployment
from pdd_core.kv.geometry import KVGeometry
from pdd_core.kv.pieces import packed_part, pieces_between
from pdd_core.kv.rotation import rotation_size
from pdd_vllm_plugin.capture.layout import probe_layout
from pdd_vllm_plugin.kv.pack_torch import pack
from pdd_vllm_plugin.kv.packer import HostPacker, packer_for
from pdd_vllm_plugin.kv.rank_cells import RankCells

LAYERS, HEADS, SIZE, COUNT = 2, 3, 64, 24


class TokensFirst:
    """As FlashAttention's, (blocks, 2, tokens, heads, size)."""

    num_kv_heads, head_size, block = HEADS, SIZE, 16

    def cache(self, dtype):
        return torch.zeros(COUNT, 2, self.block, HEADS, SIZE, dtype=dtype)

    def views(self, cache):
        return cache.unbind(1)

    def do_kv_cache_update(self, layer, key, value, cache, slots):
        for side, rows in zip(self.views(cache), (key, value), strict=True):
            for row, slot in zip(rows, slots.tolist(), strict=True):
                self.put(side[slot // self.block], slot % self.block, row)

    def put(self, block, at, row):
        block[at] = row


class HeadsFirst(TokensFirst):
    """The same in memory as (blocks, 2, heads, tokens, size)."""

    block = 48

    def cache(self, dtype):
        return torch.zeros(COUNT, 2, HEADS, self.block, SIZE, dtype=dtype).transpose(2, 3)


class Tiled(TokensFirst):
    """Keys and values side by side, and in an order without regular strides, as the CPU's keys."""

    def cache(self, dtype):
        return torch.zeros(COUNT, HEADS, self.block, 2 * SIZE, dtype=dtype)

    def views(self, cache):
        return cache[..., :SIZE], cache[..., SIZE:]

    def put(self, block, at, row):
        block[:, at] = row.view(HEADS, 2, -1).flip(1).reshape(HEADS, -1).roll(at, dims=1)


class Apart(TokensFirst):
    """All keys before all values: (2, blocks, tokens, heads, size)."""

    def cache(self, dtype):
        return torch.zeros(2, COUNT, self.block, HEADS, SIZE, dtype=dtype).transpose(0, 1)


def made(impl, dtype, kinds=("q8_0", "q4_0")):
    """Caches, and what a worker with all heads has in them."""
    rotations = [rotation_size(SIZE, values=values) for values in (False, True)] if "f16" not in kinds else [1, 1]
    geometry = KVGeometry(
        num_layers=LAYERS, num_kv_heads=HEADS, head_size=SIZE, key_type=kinds[0], value_type=kinds[1],
        key_rotation=rotations[0], value_rotation=rotations[1], rope={"theta": 1e4, "rotary_dim": SIZE},
        parts=[{"layers": (0, LAYERS), "heads": (0, HEADS)}],
    )  # fmt: skip
    caches = tuple(impl.cache(dtype) for _ in range(LAYERS))
    keys, values = (probe_layout(None, impl, caches[0], values=side) for side in (False, True))
    return RankCells(geometry, geometry.parts[0], True, caches, keys, values, 0, 1)


def filled(cells, impl, tokens):
    """Write random keys and values of a request into the caches; return them as float32, and its blocks."""
    drawn = torch.Generator().manual_seed(tokens)
    blocks = torch.randperm(COUNT, generator=drawn)[: -(-tokens // impl.block)]
    sides = torch.randn(2, LAYERS, tokens, HEADS, SIZE, generator=drawn).to(cells.caches[0].dtype)
    slots = torch.tensor([int(blocks[at // impl.block]) * impl.block + at % impl.block for at in range(tokens)])
    for layer, cache in enumerate(cells.caches):
        impl.do_kv_cache_update(None, sides[0, layer], sides[1, layer], cache, slots)
    return sides.float().numpy(), blocks


def expected(cells, sides, tokens):
    return {
        piece: packed_part(*(side[:, piece.start : piece.end] for side in sides), cells.geometry)
        for piece in pieces_between(0, tokens)
    }


TYPES = [torch.float32, torch.float16, torch.bfloat16]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
@pytest.mark.parametrize("impl", [TokensFirst(), HeadsFirst(), Tiled()], ids=lambda impl: type(impl).__name__)
@pytest.mark.parametrize("tokens", [1, 128, 200, 300])
def test_on_the_host_packed_cells_are_those_written(impl, dtype, tokens):
    cells = made(impl, dtype)
    sides, blocks = filled(cells, impl, tokens)
    taken = packer_for(cells).take(blocks.tolist(), tokens)
    for cache in cells.caches:
        cache.zero_()  # the next step has other tokens in these blocks
    payloads = dict(taken.payloads())
    assert payloads == expected(cells, sides, tokens)
    assert [piece.start for piece in payloads] == sorted((piece.start for piece in payloads), reverse=True)


@pytest.mark.parametrize("kinds", [("q8_0", "q4_0"), ("f16", "f16"), ("q4_0", "q8_0")])
@pytest.mark.parametrize(
    "impl", [TokensFirst(), HeadsFirst(), Tiled(), Apart()], ids=lambda impl: type(impl).__name__
)
@pytest.mark.parametrize("tokens", [1, 128, 200, 300])
def test_torch_packs_as_numpy_does(impl, kinds, tokens):
    cells = made(impl, torch.float32, kinds)
    sides, blocks = filled(cells, impl, tokens)
    packed = pack(cells.caches, None, (cells.keys, cells.values), blocks, tokens, cells.geometry)
    wanted = b"".join(payload for _, payload in reversed(expected(cells, sides, tokens).items()))
    other = np.frombuffer(wanted, dtype=np.uint8)
    assert len(packed) == len(other)
    # sums of the rotation may differ in their last bit, and few round to another side by it
    assert (packed.numpy() != other).mean() < (1e-3 if "f16" not in kinds else 1e-9)


def test_where_keys_and_values_are_apart_a_block_cannot_be_copied():
    with pytest.raises(UnsupportedDeployment, match="apart"):
        HostPacker(made(Apart(), torch.float32))
