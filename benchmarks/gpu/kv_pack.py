"""Packs a prompt's cells on the GPU: equal to the host's packing, and how fast beside a copy of the same cache.

python3 benchmarks/gpu/kv_pack.py
"""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import torch

from pdd_core.kv.geometry import KVGeometry, KVPart, RopeGeometry
from pdd_core.kv.pieces import packed_part, pieces_between
from pdd_core.kv.rotation import rotation_size
from pdd_vllm_plugin.kv.pack_cuda import pack

SHAPES = {"SmolLM2-135M": (30, 3, 64), "Llama-1B": (16, 8, 64), "Llama-8B": (32, 8, 128), "odd": (3, 2, 96)}
BLOCK = 16


def geometry_of(layers: int, heads: int, size: int, key: str, value: str) -> KVGeometry:
    turned = key != "f16"
    return KVGeometry(
        num_layers=layers, num_kv_heads=heads, head_size=size, key_type=key, value_type=value,
        key_rotation=rotation_size(size, values=False) if turned else 1,
        value_rotation=rotation_size(size, values=True) if turned else 1,
        rope=RopeGeometry(theta=1e4, rotary_dim=size), parts=[KVPart(layers=(0, layers), heads=(0, heads))],
    )  # fmt: skip


def main() -> None:
    for name, (layers, heads, size) in SHAPES.items():
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            for key, value in (("q8_0", "q4_0"), ("q8_0", "q8_0"), ("f16", "f16"), ("q4_0", "q4_0")):
                check(name, layers, heads, size, dtype, key, value)
        measure(name, layers, heads, size)


def made(layers: int, heads: int, size: int, dtype: torch.dtype, tokens: int):
    count = 4 * (tokens // BLOCK + 1)
    torch.manual_seed(0)
    # (blocks, 2, tokens, heads, size): the layout of FlashAttention
    caches = [torch.randn(count, 2, BLOCK, heads, size, device="cuda").to(dtype) for _ in range(layers)]
    blocks = torch.randperm(count, device="cuda")[: -(-tokens // BLOCK)]
    strides = (heads * size, size, 1)
    layouts = [
        SimpleNamespace(
            shape=(BLOCK, heads, size), strides=strides, origin=i * BLOCK * heads * size, block_size=BLOCK
        )
        for i in range(2)
    ]
    pointers = torch.tensor([cache.data_ptr() for cache in caches], dtype=torch.int64, device="cuda")
    return caches, pointers, layouts, blocks


def check(name, layers, heads, size, dtype, key, value) -> None:
    tokens, geometry = 300, geometry_of(layers, heads, size, key, value)
    caches, pointers, layouts, blocks = made(layers, heads, size, dtype, tokens)
    got = pack(caches, pointers, layouts, blocks, tokens, geometry).cpu().numpy()
    whole = torch.stack([cache[blocks] for cache in caches]).float().cpu().numpy()
    keys, values = (whole[:, :, i].reshape(layers, -1, heads, size)[:, :tokens] for i in range(2))
    wanted = b"".join(
        packed_part(keys[:, piece.start : piece.end], values[:, piece.start : piece.end], geometry)
        for piece in reversed(list(pieces_between(0, tokens)))
    )
    other = np.frombuffer(wanted, dtype=np.uint8)
    assert len(other) == len(got), (len(other), len(got))
    differ = float((other != got).mean())
    largest = int(np.abs(other.astype(int) - got.astype(int)).max()) if key == "f16" else -1
    print(f"{name:13} {dtype!s:15} {key}/{value}: {differ:.2e} of the bytes differ {largest}", flush=True)
    assert differ < 5e-3  # two values that are largest with opposite signs: more often without a rotation


def measure(name, layers, heads, size) -> None:
    tokens, geometry = 2000, geometry_of(layers, heads, size, "q8_0", "q4_0")
    caches, pointers, layouts, blocks = made(layers, heads, size, torch.bfloat16, tokens)
    host = torch.empty(tokens * geometry.cell_bytes, dtype=torch.uint8, pin_memory=True)

    def timed(work) -> float:
        for _ in range(3):
            work()
        torch.cuda.synchronize()
        begun = time.perf_counter()
        for _ in range(20):
            work()
        torch.cuda.synchronize()
        return (time.perf_counter() - begun) / 20

    packing = timed(lambda: pack(caches, pointers, layouts, blocks, tokens, geometry))
    begun = time.perf_counter()
    for _ in range(20):
        pack(caches, pointers, layouts, blocks, tokens, geometry)
    queued = (time.perf_counter() - begun) / 20
    torch.cuda.synchronize()
    packed = pack(caches, pointers, layouts, blocks, tokens, geometry)
    copying = timed(lambda: host.copy_(packed, non_blocking=True))
    gathering = timed(lambda: [cache.index_select(0, blocks) for cache in caches])
    size_mb = tokens * geometry.cell_bytes / 1e6
    print(
        f"{name}: {tokens} cells, {size_mb:.0f} MB: packing {1e3 * packing:.3f} ms ({1e3 * queued:.3f} ms of "
        f"Python), plain gathering {1e3 * gathering:.3f} ms, to the host {1e3 * copying:.2f} ms "
        f"= {size_mb / copying / 1e3:.0f} GB/s",
        flush=True,
    )


if __name__ == "__main__":
    main()
