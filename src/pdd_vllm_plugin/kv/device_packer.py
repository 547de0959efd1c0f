"""Packs on the GPU in the step, and copies what is packed to the host in a thread."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import torch

from pdd_core.kv.geometry import PIECE_TOKENS
from pdd_core.kv.pieces import pieces_between

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from torch import Tensor

    from pdd_core.kv.pieces import Piece
    from pdd_vllm_plugin.kv.packer import Taken
    from pdd_vllm_plugin.kv.rank_cells import RankCells


class DevicePacker:
    """Queues the packing behind the step. Memory on the GPU is held until the packed bytes are on the host."""

    threads = 2

    def __init__(self, cells: RankCells) -> None:
        """Pack the cells of `cells`, on the GPU that has their caches."""
        device = cells.caches[0].device
        pointers = [cache.data_ptr() for cache in cells.caches]
        self._cells = cells
        self._device = device
        self._pointers = torch.tensor(pointers, dtype=torch.int64, device=device)
        self._pack = _pack_of(cells)
        self._staging = _Staging(PIECE_TOKENS * cells.cell_bytes, device)
        for tokens in (1, 16, 17):  # kernels are compiled for kinds of numbers, which a step had to wait for
            self.take([0] * -(-tokens // cells.keys.block_size), tokens)
        torch.cuda.synchronize(device)

    def take(self, blocks: Sequence[int], tokens: int) -> Taken:
        """Do `Packer.take`.

        Raises:
            MemoryError: there is no room for the packed cells on the GPU.
        """
        ids = torch.tensor(blocks, dtype=torch.int64).pin_memory().to(self._device, non_blocking=True)
        cells = self._cells
        layouts = cells.keys, cells.values
        try:
            packed = self._pack(cells.caches, self._pointers, layouts, ids, tokens, cells.geometry)
        except torch.OutOfMemoryError as error:
            raise MemoryError from error
        ready = torch.cuda.Event()
        ready.record()
        return _PackedCells(packed, ready, tokens, cells.cell_bytes, self._staging)


def _pack_of(cells: RankCells) -> Callable[..., Tensor]:
    """Return the kernel where it can be had, else the same of torch's operations."""
    if cells.keys.strides is not None and cells.values.strides is not None:
        try:
            from pdd_vllm_plugin.kv.pack_cuda import pack
        except ImportError:  # no Triton
            pass
        else:
            return pack
    from pdd_vllm_plugin.kv.pack_torch import pack as pack_plainly

    return pack_plainly


class _Staging(threading.local):
    """Each thread's page-locked memory, and the stream that it copies on."""

    def __init__(self, size: int, device: torch.device) -> None:
        self._size = size
        self._device = device
        self._made: tuple[Tensor, Any] | None = None

    def get(self) -> tuple[Tensor, Any]:
        if self._made is None:
            host = torch.empty(self._size, dtype=torch.uint8, pin_memory=True)
            self._made = host, torch.cuda.Stream(self._device)
        return self._made


class _PackedCells:
    def __init__(self, packed: Tensor, ready: Any, tokens: int, cell_bytes: int, staging: _Staging) -> None:
        self._packed = packed
        self._ready = ready
        self._tokens = tokens
        self._cell_bytes = cell_bytes
        self._staging = staging

    @property
    def nbytes(self) -> int:
        return int(self._packed.nbytes)

    def payloads(self) -> Iterator[tuple[Piece, bytes | memoryview]]:
        host, stream = self._staging.get()
        view = memoryview(host.numpy())
        stream.wait_event(self._ready)
        for piece in pieces_between(0, self._tokens):
            begin, end = piece.start * self._cell_bytes, piece.end * self._cell_bytes
            with torch.cuda.stream(stream):
                host[: end - begin].copy_(self._packed[begin:end], non_blocking=True)
            stream.synchronize()
            yield piece, view[: end - begin]
