"""What an evaluation asks of llama.cpp: attention, greedy answers, and likelihoods of given tokens.

The same prompt gives the same bits whatever was read before it: batches begin at multiples of `CHUNK`, and only
whole ones are reused.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdd_cli.evaluate.metrics import log_softmax
from pdd_llamacpp_adapter.attention import CHUNK, AttentionContext, n_ctx_train
from pdd_llamacpp_adapter.vocab import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from pdd_core.refinement.scores import Attention


class Reader:
    """One model. Not thread-safe."""

    def __init__(self, gguf: Path, *, n_ctx: int, threads: int) -> None:
        """Load `gguf`; raises what `AttentionContext` raises."""
        self._context = AttentionContext(gguf, n_ctx=n_ctx, n_threads=threads)
        self.vocab = Vocabulary(self._context.model)
        self.n_layer = self._context.n_layer
        self.n_ctx_train = n_ctx_train(self._context)
        self._reusable = 0

    def close(self) -> None:
        """Free the model."""
        self.vocab.close()
        self._context.close()

    def read(self, ids: Sequence[int], *, window: int, layers: Collection[int] | None) -> Attention:
        """Prefill a prompt and return the attention of its end; see `AttentionContext.attention`."""
        attention = self._context.attention(ids, window=window, layers=layers)
        self._reusable = len(ids) - min(window, len(ids))
        return attention

    def answer(self, tokens: int, *, opening: Sequence[int], after: int) -> tuple[list[int], list[float]]:
        """Return the greedy answer to the prompt just read, with logprobs: its first `tokens`, or up to its end.

        Args:
            tokens: most tokens of the answer, the end's token among them.
            opening: tokens to put before it.
            after: tokens of the last batch, whose last logits say what comes first.
        """
        logits = self._context.decode(opening, want_logits=True) if opening else self._context.logits_at(after - 1)
        answer: list[int] = []
        likelihoods: list[float] = []
        while True:
            assert logits is not None  # noqa: S101 - asked for
            logprobs = log_softmax(logits)
            token = int(logprobs.argmax())
            answer.append(token)
            likelihoods.append(float(logprobs[token]))
            if len(answer) == tokens or token in self.vocab.stop_ids:
                return answer, likelihoods
            logits = self._context.decode([token], want_logits=True)

    def forced(self, ids: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        """Return the log-probabilities at each token of `answer` behind the prompt: float32 (answer, n_vocab)."""
        common = 0
        for mine, held in zip(ids[: min(len(ids) - 1, self._reusable)], self._context.ids, strict=False):
            if mine != held:
                break
            common += 1
        start = self._context.rewind(common // CHUNK * CHUNK)
        tail = (len(ids) - 1) // CHUNK * CHUNK
        for begin in range(start, tail, CHUNK):
            self._context.decode(ids[begin : begin + CHUNK], want_logits=False)
        self._reusable = tail
        first = len(ids) - 1 - tail
        outputs = range(first, first + len(answer))
        self._context.decode([*ids[tail:], *answer[:-1]], want_logits=False, outputs=outputs)
        return log_softmax(np.stack([self._context.logits_at(index) for index in outputs]))
