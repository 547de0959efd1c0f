"""A captured layer: where the keys of a request lie in its KV cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pdd_vllm_plugin.capture.layout import CacheLayout
    from pdd_vllm_plugin.capture.windows import WindowChunk


@dataclass(frozen=True, slots=True)
class CaptureLayer:
    """One captured layer: its number, how its cache is laid out, and to which KV cache group it belongs."""

    index: int
    layout: CacheLayout
    group: int
    block_size: int
    """Tokens of a block as the scheduler counts them: a multiple of the kernel's."""

    def written_block(self, chunk: WindowChunk) -> tuple[int, int]:
        """Return column and id, in the kernel's block table, of the block that the step's last token goes to.

        Nobody else's row has it: blocks that are being written are not shared.
        """
        position, kernel = chunk.start + chunk.tokens - 1, self.layout.block_size
        block = chunk.block_ids[self.group][position // self.block_size]
        # vllm.v1.worker.block_table.BlockTable.map_to_kernel_blocks
        return position // kernel, block * (self.block_size // kernel) + position % self.block_size // kernel
