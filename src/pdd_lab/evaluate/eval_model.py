"""What an evaluation asks of llama.cpp: attention, greedy answers, and likelihoods of given tokens.

What two prompts begin with is read once. The same prompt gives the same bits whatever was read before it: of the
memory, only what was read in batches is reused, see `pdd_llamacpp_adapter.engine.prompt_attention.chunks`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pdd_lab.evaluate.statistics import log_softmax
from pdd_llamacpp_adapter.engine.history import common_prefix
from pdd_llamacpp_adapter.engine.prompt_attention import AttentionContext, chunks, n_ctx_train
from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from pdd_core.refinement.scores import Attention


class EvalModel:
    """One model. Not thread-safe."""

    def __init__(self, gguf: Path, *, n_ctx: int, threads: int) -> None:
        """Load `gguf`; raises what `AttentionContext` raises."""
        self._context = AttentionContext(gguf, n_ctx=n_ctx, n_threads=threads)
        self._sequence = self._context.sequences[0]
        self.vocab = Vocabulary(self._context.model)
        self.n_layer = self._context.n_layer
        self.n_ctx_train = n_ctx_train(self._context)
        self._batched = 0
        """So many of the first tokens in memory were read in batches of more than one."""

    def full_layers(self) -> tuple[int, ...]:
        """Return the layers that the cloud may capture; see `AttentionContext.full_layers`."""
        self._batched = 0
        return self._context.full_layers()

    def close(self) -> None:
        """Free the model."""
        self._context.close()

    def read(self, ids: Sequence[int], *, window: int, layers: Collection[int] | None) -> Attention:
        """Prefill a prompt and return the attention of its end; see `AttentionContext.attention`."""
        attention = self._context.attention(ids, window=window, layers=layers)
        self._batched = len(ids) if min(window, len(ids)) > 1 else len(ids) - 1
        return attention

    def answer(self, tokens: int, *, opening: Sequence[int], after: int) -> tuple[list[int], list[float]]:
        """Return the greedy answer to the prompt just read, with logprobs: its first `tokens`, or up to its end.

        Args:
            tokens: most tokens of the answer, the end's token among them.
            opening: tokens to put before it.
            after: tokens of the last batch, whose last logits say what comes first.
        """
        logits = (
            self._sequence.decode(opening, want_logits=True) if opening else self._context.logits_at(after - 1)
        )
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
            logits = self._sequence.decode([token], want_logits=True)

    def forced(self, ids: Sequence[int], answer: Sequence[int]) -> np.ndarray:
        """Return the log-probabilities at each token of `answer` behind the prompt: float32 (answer, n_vocab)."""
        everything = [*ids, *answer[:-1]]
        last = len(ids) - 1
        # the last batch has two tokens at least, wherever what is known ends
        known = min(
            common_prefix(self._sequence.ids[: self._batched], everything[:last]), max(0, len(everything) - 2)
        )
        begin = self._sequence.rewind(known)
        for start, end in chunks(begin, last):
            if end == last:
                break  # with the answer, in the last batch
            self._sequence.decode(everything[start:end], want_logits=False)
            begin = end
        outputs = range(last - begin, len(everything) - begin)
        self._sequence.decode(everything[begin:], want_logits=False, outputs=outputs)
        self._batched = len(everything)
        return log_softmax(np.stack([self._context.logits_at(index) for index in outputs]))
