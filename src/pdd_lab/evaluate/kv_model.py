"""A model whose prompt's cells can be taken out and put in: it stands for the cloud, and for the device."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.errors import ModelError
from pdd_core.kv.cell_types import CellType
from pdd_lab.evaluate.eval_model import EvalModel
from pdd_lab.evaluate.statistics import log_softmax
from pdd_llamacpp_adapter.engine.history import common_prefix
from pdd_llamacpp_adapter.engine.kv import ggml
from pdd_llamacpp_adapter.engine.kv.kv_support import supported
from pdd_llamacpp_adapter.engine.kv.model_facts import model_facts
from pdd_llamacpp_adapter.engine.kv.sequence_state import CellLayout, read, written
from pdd_llamacpp_adapter.engine.prompt_attention import chunks

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Cells = tuple[np.ndarray, np.ndarray]
"""Keys and values, float32 of shape (layers, tokens, KV heads, head size), in vLLM's order of elements."""


class KVModel(EvalModel):
    """An `EvalModel` with the cells of its memory. They are F16, and flash attention is off."""

    def __init__(self, gguf: Path, *, n_ctx: int, threads: int) -> None:
        """Load `gguf`; raises what `EvalModel` raises.

        Raises:
            ModelError: no cells can be handed to this model.
        """
        super().__init__(gguf, n_ctx=n_ctx, threads=threads)
        support = supported(model_facts(self._context.model.handle, gguf))
        if support.shape is None:
            self.close()
            raise ModelError(f"{gguf}: no KV cache can be handed over: {support.reason}")
        self.shape = support.shape
        self._layout = CellLayout(self.shape, CellType.F16, True, self._context.n_ctx, ggml.pack)

    def cells(self, ids: Sequence[int]) -> Cells:
        """Return the cells of `ids`, at least two tokens, which are read unless they are in memory.

        Raises:
            ContextOverflow: they do not fit.
            InvalidCells: llama.cpp lays its memory out as is not known.
        """
        known = common_prefix(self._sequence.ids[: self._batched], ids)
        if known == len(ids) - 1:
            known -= 1  # a batch of a single token has other bits
        known = self._sequence.rewind(known)
        for start, end in chunks(known, len(ids)):
            self._sequence.decode(ids[start:end], want_logits=False)
        self._batched = len(ids)
        held = read(self._layout, self._sequence.state())
        return held.keys, held.values

    def behind(
        self, cells: Cells, ids: Sequence[int], answer: Sequence[int], *, dropped: Sequence[int] = ()
    ) -> np.ndarray:
        """Return the log-probabilities at each token of `answer` behind cells: float32 (answer, n_vocab).

        Args:
            cells: of the first tokens of `ids`: all but those of one batch.
            ids: the prompt; what has no cell is read.
            answer: tokens behind it.
            dropped: positions, increasing, whose cells are taken out again.
        """
        count = cells[0].shape[1]
        self._sequence.load(written(self._layout, 0, *cells), ids[:count])
        self._batched = 0  # reading would have left other bits
        for _, run in groupby(enumerate(dropped), lambda pair: pair[1] - pair[0]):
            span = [position for _, position in run]
            self._context.evict(span[0], span[-1] + 1)
        batch = [*ids[count:], *answer[:-1]]
        outputs = range(len(ids) - count - 1, len(batch))
        self._sequence.decode(batch, want_logits=False, outputs=outputs)
        return log_softmax(np.stack([self._context.logits_at(index) for index in outputs]))
