"""Takes a prompt's cells out of the paged cache behind a step, and packs them.

`take` runs in the step and waits for nothing: it copies (CPU) or packs (CUDA) on the model's own stream. That is
what makes it safe. The request's blocks are its own in this step. What writes to them later is queued behind: the
next step's forward pass, also where scheduling runs ahead and has given the blocks to another request. A KV
connector may write from elsewhere, but only to blocks that were freed. The scheduler frees them when it has this
step's tokens, which are sampled on the same stream behind the copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch

from pdd_core.errors import UnsupportedDeployment
from pdd_core.kv.pieces import packed_part, pieces_between

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from pdd_core.kv.pieces import Piece
    from pdd_vllm_plugin.kv.rank_cells import RankCells


class Taken(Protocol):
    """A prompt's cells, out of the cache."""

    @property
    def nbytes(self) -> int:
        """Memory that they hold until they are packed."""

    def payloads(self) -> Iterator[tuple[Piece, bytes | memoryview]]:
        """Yield the packed pieces from the back to the front; each is valid until the next is asked for."""


class Packer(Protocol):
    """One way to take cells."""

    threads: int
    """How many may ask for payloads at once."""

    def take(self, blocks: Sequence[int], tokens: int) -> Taken:
        """Take a request's first `tokens` cells out of its `blocks`, as the kernel counts them. In the step.

        Raises:
            MemoryError: there is no room for them.
        """


def packer_for(cells: RankCells) -> Packer:
    """Return the packer for the device that the cache is on.

    Raises:
        UnsupportedDeployment: there is none.
    """
    kind = cells.caches[0].device.type
    if kind == "cpu":
        return HostPacker(cells)
    if kind == "cuda":
        from pdd_vllm_plugin.kv.device_packer import DevicePacker

        return DevicePacker(cells)
    raise UnsupportedDeployment(f"the KV cache is in the memory of a device of type {kind}")


class HostPacker:
    """Copies whole blocks in the step, and packs them in a thread.

    Both with numpy: torch would have its threads wait for each other, on cores that the engine has use for.
    """

    threads = 1

    def __init__(self, cells: RankCells) -> None:
        """Pack the cells of `cells`.

        Raises:
            UnsupportedDeployment: a block's keys and values are not together.
        """
        if not all(cells.keys.in_one_piece(cache) for cache in cells.caches):
            raise UnsupportedDeployment("keys and values of a block are apart in the KV cache")
        self._cells = cells
        bits, self._read = _READERS[cells.caches[0].dtype]
        self._indices = [layout.index.numpy() for layout in (cells.keys, cells.values)]
        self._blocks = [cells.keys.flat(cache).view(bits).numpy() for cache in cells.caches]

    def take(self, blocks: Sequence[int], tokens: int) -> Taken:
        """Do `Packer.take`."""
        first = self._blocks[0]
        copies = np.empty((len(self._blocks), len(blocks), first.shape[1]), dtype=first.dtype)
        for copy, cache in zip(copies, self._blocks, strict=True):
            for row, block in enumerate(blocks):
                copy[row] = cache[block]
        return _CopiedBlocks(self, copies, tokens)

    def payload(self, copies: np.ndarray, piece: Piece) -> bytes:
        """Pack a piece of the cells whose blocks were copied: (layers, blocks, extent)."""
        keys, values = (self._rows(copies, piece, index) for index in self._indices)
        return packed_part(keys, values, self._cells.geometry)

    def _rows(self, copies: np.ndarray, piece: Piece, index: np.ndarray) -> np.ndarray:
        size, part = self._cells.keys.block_size, self._cells.part
        first, last = piece.start // size, -(-piece.end // size)
        rows = np.take(copies[:, first:last], index, axis=2)
        shape = (part.num_layers, (last - first) * size, part.num_heads, self._cells.geometry.head_size)
        return self._read(rows.reshape(shape)[:, piece.start - first * size : piece.end - first * size])


def _as_it_is(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.float32)


def _from_half(bits: np.ndarray) -> np.ndarray:
    return bits.view(np.float16).astype(np.float32)


def _from_bfloat(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


_READERS = {
    torch.float32: (torch.int32, _as_it_is),
    torch.float16: (torch.int16, _from_half),
    torch.bfloat16: (torch.int16, _from_bfloat),
}
"""By the cache's type: what numpy sees of it, and how that becomes numbers."""


class _CopiedBlocks:
    def __init__(self, packer: HostPacker, copies: np.ndarray, tokens: int) -> None:
        self._packer = packer
        self._copies = copies
        self._tokens = tokens
        self.nbytes = copies.nbytes

    def payloads(self) -> Iterator[tuple[Piece, bytes | memoryview]]:
        for piece in pieces_between(0, self._tokens):
            yield piece, self._packer.payload(self._copies, piece)
