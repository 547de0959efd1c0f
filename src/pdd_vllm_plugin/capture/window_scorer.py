"""Takes the window's queries as they pass, and scores the prompt when the last of them has passed.

All on the model's own stream: nothing in a layer waits for the GPU. Which row of the batch is whose is found with
tensor operations too: the row whose block table holds the block that the request is writing.
"""

from __future__ import annotations

import logging
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from pdd_vllm_plugin.capture.score_store import Missed, Scores, ScoreStore
from pdd_vllm_plugin.capture.window_attention import window_attention
from pdd_vllm_plugin.failsafe import Failsafe

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor

    from pdd_vllm_plugin.capture.capture_layer import CaptureLayer
    from pdd_vllm_plugin.capture.windows import WindowChunk

logger = logging.getLogger("vllm.pdd")


@dataclass(slots=True)
class _Partial:
    """A request whose window has begun. Its parts have to follow each other; a gap voids what was before."""

    first: int
    last: int
    queries: dict[int, list[Tensor]] = field(default_factory=dict)
    scores: dict[int, Tensor] = field(default_factory=dict)


class WindowScorer:
    """One rank's capture.

    Args:
        layers: by vLLM's layer name, those whose attention counts.
        window: how many of a prompt's last tokens count, where its request does not say.
        heads: how a layer's heads are reduced.
        score_store: where the scores go.
        strict: log each prompt that passed unseen, as an error. It never raises: that would end the engine.
    """

    def __init__(
        self,
        layers: Mapping[str, CaptureLayer],
        *,
        window: int,
        heads: Literal["max", "mean"],
        score_store: ScoreStore,
        strict: bool,
    ) -> None:
        self._layers = layers
        self._window = window
        self._heads = heads
        self._strict = strict
        self.score_store = score_store
        self._partial: dict[str, _Partial] = {}
        self.failsafe = Failsafe("prompts are not refined from here on", then=self._partial.clear)
        """For the code that calls this object inside a step."""
        self._stored: dict[str, str] = {}
        """Handoff ids of the running requests whose scores are stored, or were, by vLLM's request id."""
        self._chunks: tuple[WindowChunk, ...] = ()
        self._seen: Counter[str] = Counter()
        self._rows: dict[tuple[int, str], tuple[Tensor, Tensor]] = {}
        self._warned = False
        self.scored = 0
        """Prompts scored since the start."""
        self.missed = 0
        """Prompts whose window passed without being seen."""

    def counts(self) -> dict[str, int]:
        """What was captured since the start, and what is held now."""
        return {
            "scored": self.scored,
            "missed": self.missed,
            "stored": len(self.score_store),
            "partial": len(self._partial),
        }

    def forget(self, request_ids: Any) -> None:
        """Drop what was begun for requests that are over; what is complete begins to age."""
        if not self._partial and not self._stored:
            return
        for request_id in request_ids:
            self._partial.pop(request_id, None)
            if (handoff_id := self._stored.pop(request_id, None)) is not None:
                self.score_store.ended(handoff_id)

    def begin_step(self, chunks: tuple[WindowChunk, ...]) -> None:
        """Expect `chunks` in the coming step."""
        self._chunks = chunks
        for chunk in chunks:
            partial = self._partial.get(chunk.request_id)
            if partial is None or partial.last != chunk.first:
                self._partial[chunk.request_id] = _Partial(chunk.first, chunk.last)
            else:
                partial.last = chunk.last

    def on_layer(self, layer: Any, impl: Any, query: Tensor, kv_cache: Tensor, metadata: Any) -> None:
        """Take what counts of one layer's attention. Called after the layer has written its keys.

        Args:
            layer: vLLM's ``Attention`` layer.
            impl: its ``AttentionImpl``.
            query: (n_tokens, n_heads, head_size).
            kv_cache: the layer's cache.
            metadata: the backend's, with `query_start_loc`, `seq_lens` and `block_table`.
        """
        captured = self._layers.get(layer.layer_name)
        if captured is None:
            return
        for chunk in self._chunks:
            self._take(chunk, captured, impl, query, kv_cache, metadata)

    def _take(
        self, chunk: WindowChunk, captured: CaptureLayer, impl: Any, query: Tensor, kv_cache: Tensor, metadata: Any
    ) -> None:
        partial = self._partial[chunk.request_id]
        row, found = self._row(chunk, captured, metadata)
        begins = metadata.query_start_loc.index_select(0, row).to(torch.int64)
        offsets = torch.arange(chunk.first - chunk.start, chunk.last - chunk.start, device=query.device)
        queries = partial.queries.setdefault(captured.index, [])
        queries.append(query.view(query.shape[0], -1, impl.head_size).index_select(0, begins + offsets))
        self._seen[chunk.request_id] += 1
        if not chunk.completes:
            return
        layout = captured.layout
        n_blocks = -(-chunk.prompt_tokens // layout.block_size)
        blocks = metadata.block_table.index_select(0, row)[0, :n_blocks].to(torch.int64)
        scores = window_attention(
            torch.cat(queries),
            layout.rows(kv_cache, blocks, chunk.prompt_tokens),
            first=partial.first,
            scale=float(impl.scale),
            heads=self._heads,
            soft_cap=float(getattr(impl, "logits_soft_cap", 0) or 0),
            sinks=getattr(impl, "sinks", None),
        )
        # a row that was not found is seen later, without waiting for the device now
        partial.scores[captured.index] = torch.where(found, scores, float("nan"))
        del partial.queries[captured.index]

    def _row(self, chunk: WindowChunk, captured: CaptureLayer, metadata: Any) -> tuple[Tensor, Tensor]:
        """Return the request's row in the batch, of shape (1,), and whether there is one, of shape ()."""
        key = (id(metadata), chunk.request_id)
        if (known := self._rows.get(key)) is not None:
            return known
        column, block = captured.written_block(chunk)
        seq_lens = metadata.seq_lens
        matches = metadata.block_table[: seq_lens.shape[0], column] == block
        matches &= seq_lens == chunk.start + chunk.tokens
        row = matches.to(torch.uint8).argmax().view(1)
        self._rows[key] = (row, matches.any())
        return self._rows[key]

    def end_step(self) -> None:
        """Store what is complete, and notice what passed unseen."""
        chunks, self._chunks = self._chunks, ()
        for chunk in chunks:
            seen = self._seen[chunk.request_id]
            if seen != len(self._layers):
                self._miss(
                    chunk,
                    f"{seen} of {len(self._layers)} layers passed through the capture in a step of {chunk.tokens} "
                    "prompt tokens: the step ran as a CUDA graph, or without this backend's Python code",
                )
            elif chunk.completes:
                self._complete(chunk)
        self._seen.clear()
        self._rows.clear()

    def _complete(self, chunk: WindowChunk) -> None:
        partial = self._partial[chunk.request_id]
        seen, window = partial.last - partial.first, min(chunk.window or self._window, chunk.prompt_tokens)
        if seen != window:
            self._miss(
                chunk,
                f"{seen} of the prompt's last {window} tokens passed through the capture: the rest was computed "
                "elsewhere, as with a KV connector, or in a step that passed unseen",
            )
            return
        del self._partial[chunk.request_id]
        indices = tuple(sorted(partial.scores))
        values, ready = _to_host(torch.stack([partial.scores[index] for index in indices]))
        self._put(chunk, Scores(values, indices, window, ready))
        self.scored += 1

    def _put(self, chunk: WindowChunk, result: Scores | Missed) -> None:
        self._stored[chunk.request_id] = chunk.handoff_id
        self.score_store.put(chunk.handoff_id, result)

    def _miss(self, chunk: WindowChunk, problem: str) -> None:
        self._partial.pop(chunk.request_id, None)
        self._put(chunk, Missed(problem))
        if not chunk.completes:
            return  # what follows is too short then, unless the prompt is computed anew after a preemption
        self.missed += 1
        if self._strict or not self._warned:
            self._warned = True
            level = logging.ERROR if self._strict else logging.WARNING
            logger.log(level, "pdd: a prompt was not refined: %s", problem)


def _to_host(values: Tensor) -> tuple[Tensor, Any]:
    """Begin the copy to the host; return the copy and the event that tells when it is there."""
    if values.device.type == "cpu":
        return values, None
    host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    host.copy_(values, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record()
    return host, ready
