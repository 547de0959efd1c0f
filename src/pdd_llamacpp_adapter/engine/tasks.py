"""What an answer has for the engine to do, part by part: to read tokens that there are, and to make new ones."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.engine.steps import Step

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    import numpy as np

    from pdd_llamacpp_adapter.engine.batcher import Ran
    from pdd_llamacpp_adapter.engine.llama_sequence import LlamaSequence
    from pdd_llamacpp_adapter.engine.logprobs import Following
    from pdd_llamacpp_adapter.engine.steps import Steps


@dataclass(slots=True, eq=False)
class Part:
    """What one sequence has in a batch: tokens that go behind those it holds."""

    sequence: LlamaSequence
    ids: Sequence[int]
    outputs: Collection[int] = ()
    """Indices in `ids` whose logits can be read afterwards."""
    row: int = 0
    """Where its first token is in the batch."""

    @classmethod
    def of(
        cls, sequence: LlamaSequence, ids: Sequence[int], outputs: Collection[int], *, want_logits: bool
    ) -> Part:
        """Return the part with these `outputs` and, if `want_logits`, the last token."""
        return cls(sequence, ids, {*outputs, len(ids) - 1} if want_logits else outputs)

    def logits_at(self, index: int) -> np.ndarray:
        """Return llama.cpp's own logits of token `index`, until the next batch; see `LlamaContext.logits_at`."""
        return self.sequence.context.logits_at(self.row + index)


@dataclass(slots=True, eq=False)
class Reading:
    """Tokens of a prompt, or of the cloud's, as one part of a batch."""

    part: Part
    following: Following
    """Index in the part -> what may follow it, to be judged."""
    want_logits: bool
    likelihoods: list[float] = field(default_factory=list)
    """Of `following`, in its order."""
    logits: np.ndarray | None = None
    """Of the last token, a copy, if they are wanted."""
    alone_s: float | None = None
    """As `Ran.alone_s`."""
    future: Future[None] = field(default_factory=Future)
    cancelled: bool = False

    @classmethod
    def of(
        cls, sequence: LlamaSequence, ids: Sequence[int], following: Following, *, want_logits: bool
    ) -> Reading:
        """Return the task to read `ids` behind what `sequence` holds."""
        return cls(Part.of(sequence, ids, following, want_logits=want_logits), following, want_logits)

    def processed(self, ran: Ran) -> bool:
        """Take what was asked for."""
        from pdd_llamacpp_adapter.engine.logprobs import log_likelihood

        part, self.alone_s = self.part, ran.alone_s
        self.likelihoods = [log_likelihood(part.logits_at(at), seen) for at, seen in self.following.items()]
        if self.want_logits:
            # llama.cpp overwrites its own with the next batch
            self.logits = part.logits_at(len(part.ids) - 1).copy()
        return False


class Generating:
    """An answer's tokens, step by step.

    Args:
        sequence: behind what it holds.
        steps: chooses them.
        emit: told of each step, on the engine's thread.
    """

    def __init__(self, sequence: LlamaSequence, steps: Steps, emit: Callable[[Step], object]) -> None:
        self.part = Part(sequence, ())
        self.future = Future[None]()
        self.cancelled = False
        self._steps = steps
        self._emit = emit

    def begin(self, logits: np.ndarray) -> bool:
        """Choose the first token, from logits that are there; return whether it is to be processed."""
        return self._made(self._steps.first(logits), beside=0)

    def processed(self, ran: Ran) -> bool:
        """Choose the tokens behind `part`, and drop what was drafted wrong."""
        part, sequence = self.part, self.part.sequence
        rows, past = len(part.ids), len(sequence.ids) - len(part.ids)
        choices = self._steps.check(part.logits_at)
        kept = past + len(choices)
        if len(choices) < rows and sequence.rewind(kept) != kept:
            raise DeviceEngineFailed("llama.cpp cannot drop the tokens of a draft")
        if ran.beside is not None:
            self._steps.took(ran.seconds, made=len(choices), beside=ran.beside)
        return self._made(Step(choices, rows, ran.alone_s), beside=ran.beside or 0)

    def _made(self, step: Step, *, beside: int) -> bool:
        self._emit(step)
        if step.choices[-1].last:
            return False
        sequence = self.part.sequence
        ids = self._steps.next_ids(sequence.most_drafted, beside=beside)
        self.part = Part(sequence, ids, range(len(ids)))
        return True
