"""In the worker: keeps the cells of prompts whose requests ask for it, and tells API servers where."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from pdd_core.errors import UnsupportedDeployment
from pdd_core.kv.geometry import NoKV
from pdd_vllm_plugin.failsafe import Failsafe
from pdd_vllm_plugin.kv.rank_cells import rank_cells
from pdd_vllm_plugin.kv.shelf import NO_ROOM, Shelf
from pdd_vllm_plugin.kv.writer import FAILED, CellWriter, Job

if TYPE_CHECKING:
    from pdd_core.optin import OptIn
    from pdd_vllm_plugin.config import PDDConfig
    from pdd_vllm_plugin.kv.packer import Packer
    from pdd_vllm_plugin.kv.rank_cells import Rank, RankCells
    from pdd_vllm_plugin.prompt_tracker import PromptChunk

FEATURE = "kv"


class CellKeeper:
    """One worker's keeping of cells.

    Args:
        cells: what this worker has of each.
        packer: takes them.
        shelf: keeps them.
        writer: brings them there.
        most_tokens: of the longest prompt that is kept.
    """

    def __init__(
        self, cells: RankCells, packer: Packer, shelf: Shelf, writer: CellWriter, *, most_tokens: int
    ) -> None:
        self._cells = cells
        self._packer = packer
        self._shelf = shelf
        self._writer = writer
        self._most_tokens = most_tokens
        self.failsafe = Failsafe("no KV cache is handed over from here on")
        """For the code that runs inside a step."""

    def wants(self, new: Any, opt_in: OptIn) -> bool:
        """Whether a request's cells are to be kept, by vLLM's ``NewRequestData``. If not, the shelf says why."""
        if not opt_in.kv or not self._cells.gives:
            return False
        none = FAILED if self.failsafe.failed else self._why_not(new)
        if none is not None:
            self._writer.put(Job(opt_in.handoff_id, none))
        return none is None

    def _why_not(self, new: Any) -> NoKV | None:
        tokens = len(new.prompt_token_ids or ())
        if new.lora_request is not None:
            return NoKV(reason="lora", message="the request uses a LoRA adapter")
        if new.mm_features:
            return NoKV(reason="multimodal", message="the prompt has images, audio or video in it")
        if tokens > self._most_tokens:
            most = f"more than kv_max_prompt_tokens ({self._most_tokens})"
            return NoKV(reason="too_long", message=f"the prompt has {tokens} tokens, {most}")
        if tokens < 2:  # the last one's cell is not kept
            return NoKV(reason="not_captured", message="the prompt has too few token ids")
        return None if self._shelf.fits(tokens - 1, self._cells.cell_bytes) else NO_ROOM

    def end_step(self, chunks: tuple[PromptChunk, ...]) -> None:
        """Behind a step: take the cells of the prompts that it has completed."""
        for chunk in chunks:
            if FEATURE in chunk.features and chunk.completes:
                self._writer.put(self._taken(chunk))

    def _taken(self, chunk: PromptChunk) -> Job:
        # the device computes the last token anew: it needs the logits, which are in no cell
        tokens, cell_bytes = chunk.prompt_tokens - 1, self._cells.cell_bytes
        if not self._writer.has_room(tokens * cell_bytes):
            return Job(chunk.handoff_id, NO_ROOM)
        since = time.time()
        try:
            taken = self._packer.take(self._cells.blocks(chunk.block_ids, tokens), tokens)
        except MemoryError:
            return Job(chunk.handoff_id, NO_ROOM)
        return Job(chunk.handoff_id, taken, tokens, cell_bytes, since)

    def message(self) -> dict[str, Any]:
        """Return what an API server asks for once: where the shelf is, and what is on it."""
        part = self._cells.part
        return {
            "folder": str(self._shelf.folder),
            "nonce": self._shelf.nonce,
            "part": {"layers": list(part.layers), "heads": list(part.heads)},
            "geometry": self._cells.geometry.model_dump(mode="json", exclude={"parts"}),
        }

    def counts(self) -> dict[str, int]:
        """What was kept, and is held."""
        return {**self._writer.counts(), **self._shelf.counts()}

    def close(self) -> None:
        """End, and remove the shelf."""
        self._writer.close()
        self._shelf.close()


def keeper_of(rank: Rank, config: PDDConfig) -> CellKeeper | NoKV:
    """Return a worker's keeper, or why it keeps no cells."""
    try:
        cells = rank_cells(rank, config)
        from pdd_vllm_plugin.kv.packer import packer_for

        packer = packer_for(cells)
        shelf = Shelf(config.kv_shelf_bytes, config.kv_ttl_s)
    except UnsupportedDeployment as error:
        return NoKV(reason="unsupported", message=str(error))
    writer = CellWriter(shelf, packer.threads)
    return CellKeeper(cells, packer, shelf, writer, most_tokens=config.kv_max_prompt_tokens)
