"""The two tasks that an answer has for the engine: to read tokens that there are, and to make new ones."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.engine.llama_batch import Part
from pdd_llamacpp_adapter.engine.slot import Choice, Step

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy as np

    from pdd_llamacpp_adapter.engine.llama_sequence import LlamaSequence
    from pdd_llamacpp_adapter.engine.logprobs import Following


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
    seconds: float | None = None
    """That it would have taken by itself, about; None if that cannot be said."""
    future: Future[None] = field(default_factory=Future)
    cancelled: bool = False

    @classmethod
    def of(
        cls, sequence: LlamaSequence, ids: Sequence[int], following: Following, *, want_logits: bool
    ) -> Reading:
        """Return the task to read `ids` behind what `sequence` holds."""
        outputs = {*following, len(ids) - 1} if want_logits else following
        return cls(Part(sequence, ids, outputs), following, want_logits)

    def processed(self, seconds: float | None) -> bool:
        """Take what was asked for."""
        from pdd_llamacpp_adapter.engine.logprobs import log_likelihood

        part, self.seconds = self.part, seconds
        self.likelihoods = [log_likelihood(part.logits_at(at), seen) for at, seen in self.following.items()]
        if self.want_logits:
            # llama.cpp overwrites its own with the next batch
            self.logits = part.logits_at(len(part.ids) - 1).copy()
        return False


@dataclass(slots=True, eq=False)
class Generating:
    """An answer's tokens, one by one: each is chosen from the logits of the one before."""

    part: Part
    choose: Callable[[np.ndarray], Choice]
    emit: Callable[[Step], object]
    """Told of each step, on the engine's thread."""
    future: Future[None] = field(default_factory=Future)
    cancelled: bool = False

    def chosen(self, logits: np.ndarray, seconds: float | None = None) -> bool:
        """Choose a token, and have it be the next part; return whether it is to be processed.

        `logits` are of a step that would have taken `seconds` by itself.
        """
        choice = self.choose(logits)
        self.emit(Step((choice,), seconds))
        self.part = Part(self.part.sequence, (choice.token,), (0,))
        return not choice.last

    def processed(self, seconds: float | None) -> bool:
        """Choose the token behind `part`."""
        return self.chosen(self.part.logits_at(0).copy(), seconds)
