"""Takes a prompt's cells out of the paged cache behind a step, and packs them.

`take` runs in the step and waits for nothing: it copies (CPU) or packs (CUDA) on the model's own stream. That is
what makes it safe. The request's blocks are its own in this step. What writes to them later is queued behind: the
next step's forward pass, also where scheduling runs ahead and has given the blocks to another request. A KV
connector may write from elsewhere, but only to blocks that were freed. The scheduler frees them when it has this
step's tokens, which are sampled on the same stream behind the copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from pdd_core.errors import UnsupportedDeployment
from pdd_core.kv.pieces import packed_part, pieces_between

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import Tensor

    from pdd_core.kv.pieces import Piece
    from pdd_vllm_plugin.capture.layout import CacheLayout
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
    """Copies whole blocks in the step, and packs them with numpy in a thread."""

    threads = 1

    def __init__(self, cells: RankCells) -> None:
        """Pack the cells of `cells`.

        Raises:
            UnsupportedDeployment: a block's keys and values are not together.
        """
        if not all(cells.keys.in_one_piece(cache) for cache in cells.caches):
            raise UnsupportedDeployment("keys and values of a block are apart in the KV cache")
        self._cells = cells

    def take(self, blocks: Sequence[int], tokens: int) -> Taken:
        """Do `Packer.take`."""
        ids = torch.tensor(blocks, dtype=torch.int64)
        copies = [self._cells.keys.copied(cache, ids) for cache in self._cells.caches]
        return _CopiedBlocks(self._cells, copies, tokens)


class _CopiedBlocks:
    def __init__(self, cells: RankCells, copies: Sequence[Tensor], tokens: int) -> None:
        self._cells = cells
        self._copies = copies
        self._tokens = tokens

    @property
    def nbytes(self) -> int:
        return sum(copy.nbytes for copy in self._copies)

    def payloads(self) -> Iterator[tuple[Piece, bytes | memoryview]]:
        with torch.inference_mode():
            for piece in pieces_between(0, self._tokens):
                keys, values = (self._rows(piece, layout) for layout in (self._cells.keys, self._cells.values))
                yield piece, packed_part(keys.numpy(), values.numpy(), self._cells.geometry)

    def _rows(self, piece: Piece, layout: CacheLayout) -> Tensor:
        """Return a piece's keys or values, float32 of shape (layers, tokens, heads, head size)."""
        first, last = piece.start // layout.block_size, -(-piece.end // layout.block_size)
        blocks, begin = torch.arange(first, last), first * layout.block_size
        rows = [layout.rows(copy, blocks, piece.end - begin)[piece.start - begin :] for copy in self._copies]
        return torch.stack(rows).float()
