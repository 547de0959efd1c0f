"""One answer's place in the engine: a sequence of the context, and what is computed for it.

What the answers in all slots want processed at the same time goes into the same batches.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import anyio

from pdd_llamacpp_adapter.engine.engine_memory import EngineMemory
from pdd_llamacpp_adapter.engine.engine_thread import awaited
from pdd_llamacpp_adapter.engine.steps import Step, Steps
from pdd_llamacpp_adapter.engine.tasks import Generating, Reading

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Iterator, Sequence

    import numpy as np

    from pdd_llamacpp_adapter.engine.batcher import Batcher, Task
    from pdd_llamacpp_adapter.engine.context import LlamaContext
    from pdd_llamacpp_adapter.engine.engine_thread import EngineThread
    from pdd_llamacpp_adapter.engine.history import RefinedHistory
    from pdd_llamacpp_adapter.engine.llama_sequence import LlamaSequence
    from pdd_llamacpp_adapter.engine.logprobs import Following
    from pdd_llamacpp_adapter.engine.steps import Choice, Drafter


class Slot:
    """One sequence of an engine's context. One answer at a time has it: see `DeviceEngine.exclusive`."""

    def __init__(self, sequence: LlamaSequence, thread: EngineThread, batcher: Batcher) -> None:
        """Use `DeviceEngine.slots`."""
        self._thread = thread
        self._batcher = batcher
        self.memory = EngineMemory(sequence, thread)
        """What it holds of earlier answers."""
        self.alone_s: float | None = None
        """Seconds that the last `extend` or `judge` would have taken by itself, about; None if unknown."""

    @property
    def history(self) -> RefinedHistory | None:
        """The refined prompt that the memory begins with; see `EngineMemory.history`."""
        return self.memory.history

    def reset(self) -> None:
        """Forget everything, so that the next answer starts cold; see `EngineMemory.reset`."""
        self.memory.reset()

    async def extend(self, ids: Sequence[int], *, want_logits: bool = False) -> np.ndarray | None:
        """Process `ids` behind what the slot holds.

        Returns the last token's logits, float32 of shape (n_vocab,); None unless wanted. Cancelling the call stops
        llama.cpp within milliseconds, or after its batch if other answers have a part in it. The slot is then at
        the end of the last complete batch.

        Raises:
            ContextOverflow: no room for them; nothing was done.
            DeviceEngineFailed: llama.cpp returned an error; the slot holds what it held before.
        """
        return (await self.judge(ids, {}, want_logits=want_logits))[1]

    async def judge(
        self, ids: Sequence[int], following: Following, *, want_logits: bool = False
    ) -> tuple[list[float], np.ndarray | None]:
        """Process `ids` as `extend` does, and tell how likely each id in `following` is behind its token of `ids`.

        Returns the log-likelihoods in the order of `following`, and the last token's logits if they are wanted.

        Args:
            ids: what to process.
            following: index in `ids` -> what may follow it, increasing.
            want_logits: as for `extend`.

        Raises:
            ContextOverflow, DeviceEngineFailed: as `extend`; `ids` that make several batches may be half done.
        """
        sequence = self.memory.sequence
        likelihoods = list[float]()
        logits: np.ndarray | None = None
        self.alone_s = 0.0
        for begin, end in _cuts(len(ids), following, sequence.context):
            asked = {index - begin: token for index, token in following.items() if begin <= index < end}
            wanted = want_logits and end == len(ids)
            await self._done(reading := Reading.of(sequence, ids[begin:end], asked, want_logits=wanted))
            likelihoods += reading.likelihoods
            logits = reading.logits
            if self.alone_s is not None:
                self.alone_s = None if reading.alone_s is None else self.alone_s + reading.alone_s
        return likelihoods, logits

    async def _done(self, task: Task) -> None:
        self._batcher.add(task)
        await awaited(task.future, lambda: self._batcher.cancel(task))

    @property
    def drafts(self) -> bool:
        """Whether drafts of an answer's next tokens are to be checked, as `spec` says, and can be."""
        context = self.memory.sequence.context
        return context.params.spec == "lookup" and context.drops

    async def generate(
        self, logits: np.ndarray, choose: Callable[[np.ndarray], Choice], drafter: Drafter | None = None
    ) -> AsyncGenerator[Step]:
        """Make tokens step by step, and yield each step until one has the last token.

        The thread does not wait for the event loop between two steps. Closing the generator stops it after the
        step in progress; the slot may then hold more tokens than were yielded.

        Args:
            logits: those behind what the slot holds; changed in place.
            choose: called on the engine's thread with the logits of each token; the last token is not processed.
            drafter: guesses tokens, which are then checked several in a step.

        Raises:
            ContextOverflow: no room for another token.
            DeviceEngineFailed: llama.cpp returned an error; the slot holds what it held before.
        """
        loop, made = asyncio.get_running_loop(), asyncio.Queue[Step | None]()

        def emit(step: Step) -> None:
            loop.call_soon_threadsafe(made.put_nowait, step)

        task = Generating(self.memory.sequence, Steps(choose, drafter), emit)

        async def work() -> None:
            if await self._thread.call(lambda: task.begin(logits)):
                await self._done(task)

        working = asyncio.ensure_future(work())
        working.add_done_callback(lambda _: made.put_nowait(None))
        try:
            while (step := await made.get()) is not None:
                yield step
            await working
        finally:
            working.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([working])


def _cuts(count: int, following: Following, context: LlamaContext) -> Iterator[tuple[int, int]]:
    """Yield where `count` tokens are cut, so that no batch has too many of them, or logits of too many."""
    begin, asked = 0, 0
    for index in range(count):
        # one row is left for the last token's own logits
        if index - begin == context.n_batch or (index in following and asked == context.most_outputs - 1):
            yield begin, index
            begin, asked = index, 0
        asked += index in following
    yield begin, count
