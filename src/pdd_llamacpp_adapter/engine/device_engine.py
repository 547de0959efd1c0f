"""The device's engine: llama.cpp on a thread of its own, awaited from the event loop.

llama.cpp computes with the GIL released, but a context belongs to one thread at a time. So one thread makes every
call that computes, and the event loop only ever waits.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import anyio

from pdd_core.errors import ConfigurationError
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter.engine.abort_flag import DecodeAborted
from pdd_llamacpp_adapter.engine.engine_memory import EngineMemory
from pdd_llamacpp_adapter.engine.engine_queue import EngineQueue
from pdd_llamacpp_adapter.engine.engine_thread import EngineThread
from pdd_llamacpp_adapter.engine.steps import Steps

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence

    import numpy as np

    from pdd_core.sampling_defaults import DefaultSamplingParams
    from pdd_llamacpp_adapter.engine.context import LlamaContext
    from pdd_llamacpp_adapter.engine.engine_thread import Job
    from pdd_llamacpp_adapter.engine.hardware.placement import Placement
    from pdd_llamacpp_adapter.engine.history import RefinedHistory
    from pdd_llamacpp_adapter.engine.logprobs import Following
    from pdd_llamacpp_adapter.engine.steps import Choice, Drafter, Step
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary


class DeviceEngine:
    """A GGUF model, ready to answer. One answer at a time; a second one waits in `exclusive`.

    A context manager; `close` frees the model.
    """

    def __init__(self, context: LlamaContext, thread: EngineThread, vocab: Vocabulary) -> None:
        """Use `DeviceEngine.open`."""
        self._thread = thread
        self.memory = EngineMemory(context, thread)
        """What the context holds of earlier answers."""
        self.vocab = vocab
        """The model's tokens."""
        self.queue = EngineQueue()
        """Who may use it."""

    @classmethod
    def open(
        cls,
        gguf_path: str | os.PathLike[str],
        params: LlamaParams | None = None,
        *,
        kv: bool = False,
        **fields: Any,
    ) -> Self:
        """Load a model.

        Args:
            gguf_path: the model file.
            params: how llama.cpp computes.
            kv: take in prompts' KV caches that were computed elsewhere, where the model allows it (`memory.kv`).
            fields: those of `LlamaParams`, such as `n_ctx` and `threads`, in place of a whole object.

        Raises:
            ConfigurationError: a setting that does not exist, or that this build of llama.cpp cannot obey.
            ModelError: the file is missing, unreadable or not a GGUF model.
            DeviceEngineFailed: there is not the memory, or llama.cpp cannot make a context of this size.
        """
        # here, so that this module can be imported where llama.cpp is not installed
        from pdd_llamacpp_adapter.engine.context import LlamaContext
        from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

        given = LlamaParams.of(**fields) if params is None else params.changed(**fields)
        template = _template(given)
        thread = EngineThread()

        def load() -> LlamaContext:
            return LlamaContext(Path(gguf_path), given, abort=thread.abort, kv=kv)

        try:
            context = thread.run(load)
        except BaseException:
            thread.shut_down()
            raise
        return cls(context, thread, Vocabulary(context.model, chat_template=template))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what is running and free the model; behind a text that is being read, if there is one.

        Harmless when repeated.
        """
        self.memory.close()

    @property
    def n_ctx(self) -> int:
        """Tokens that fit, prompt and answer together."""
        return self.memory.context.n_ctx

    @property
    def n_ctx_train(self) -> int:
        """Tokens of the longest text that the model was trained on; 0 where the file does not say."""
        return self.memory.context.n_ctx_train

    @property
    def placement(self) -> Placement:
        """Where the model is: on which GPUs, and how much of it."""
        return self.memory.context.placement

    @property
    def threads(self) -> tuple[int, int]:
        """CPU threads for single tokens, and for batches."""
        return self.memory.context.threads

    @cached_property
    def sampling_defaults(self) -> DefaultSamplingParams:
        """How the model's file would have tokens chosen."""
        from pdd_llamacpp_adapter.engine.sampling_defaults import sampling_defaults

        return sampling_defaults(self.memory.context.model)

    @property
    def history(self) -> RefinedHistory | None:
        """The refined prompt that the memory begins with; see `EngineMemory.history`."""
        return self.memory.history

    def reset(self) -> None:
        """Forget everything, so that the next answer starts cold; see `EngineMemory.reset`."""
        self.memory.reset()

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold the context for one answer; others wait in line."""
        async with self.queue.answer():
            yield

    async def extend(self, ids: Sequence[int], *, want_logits: bool = False) -> np.ndarray | None:
        """Process `ids` behind what the context holds.

        Returns the last token's logits, float32 of shape (n_vocab,); None unless wanted. Cancelling the call stops
        llama.cpp within milliseconds, with the context at the end of the last complete batch.

        Raises:
            ContextOverflow: no room for them; nothing was done.
            DeviceEngineFailed: llama.cpp returned an error; the context holds what it held before.
        """
        context = self.memory.context
        while len(ids) > context.n_batch:
            head, ids = ids[: context.n_batch], ids[context.n_batch :]
            await self._process(context, head, want_logits=False)
        return await self._process(context, ids, want_logits=want_logits)

    async def _process(self, context: LlamaContext, ids: Sequence[int], *, want_logits: bool) -> np.ndarray | None:
        return await self._thread.call(lambda: context.decode(ids, want_logits=want_logits))

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
        context = self.memory.context
        likelihoods = list[float]()
        logits: np.ndarray | None = None
        for begin, end in _cuts(len(ids), following, context):
            asked = {index - begin: token for index, token in following.items() if begin <= index < end}
            batch = ids[begin:end]
            found, logits = await self._judge_batch(
                context, batch, asked, want_logits=want_logits and end == len(ids)
            )
            likelihoods += found
        return likelihoods, logits

    async def _judge_batch(
        self, context: LlamaContext, ids: Sequence[int], following: Following, *, want_logits: bool
    ) -> tuple[list[float], np.ndarray | None]:
        from pdd_llamacpp_adapter.engine.logprobs import log_likelihood

        def judge() -> tuple[list[float], np.ndarray | None]:
            logits = context.decode(ids, want_logits=want_logits, outputs=following)
            return [log_likelihood(context.logits_at(index), seen) for index, seen in following.items()], logits

        return await self._thread.call(judge)

    @property
    def drafts(self) -> bool:
        """Whether drafts of an answer's next tokens are to be checked, as `spec` says, and can be."""
        context = self.memory.context
        return context.params.spec == "lookup" and context.drops

    async def generate(
        self, logits: np.ndarray, choose: Callable[[np.ndarray], Choice], drafter: Drafter | None = None
    ) -> AsyncGenerator[Step]:
        """Make tokens step by step, and yield each step until one has the last token.

        The thread does not wait for the event loop between two steps. Closing the generator stops it after the
        step in progress; the context may then hold more tokens than were yielded.

        Args:
            logits: those behind what the context holds; changed in place.
            choose: called on the engine's thread with the logits of each token; the last token is not processed.
            drafter: guesses tokens, which are then checked several in a step.

        Raises:
            ContextOverflow: no room for another token.
            DeviceEngineFailed: llama.cpp returned an error; the context holds what it held before.
        """
        context, loop = self.memory.context, asyncio.get_running_loop()
        done: asyncio.Queue[Step | None] = asyncio.Queue()

        def work(job: Job) -> None:
            steps = Steps(choose, drafter)
            step = steps.first(logits)
            loop.call_soon_threadsafe(done.put_nowait, step)
            while not step.choices[-1].last:
                if job.cancelled:
                    raise DecodeAborted
                step = steps.run(context)
                loop.call_soon_threadsafe(done.put_nowait, step)

        working = asyncio.ensure_future(self._thread.call_with_job(work))
        working.add_done_callback(lambda _: done.put_nowait(None))
        try:
            while (made := await done.get()) is not None:
                yield made
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


def _template(params: LlamaParams) -> str | None:
    """Return the chat template that stands in the place of the model's own, if there is one.

    Raises:
        ConfigurationError: its file cannot be read.
    """
    if params.chat_template_file is None:
        return params.chat_template
    try:
        return params.chat_template_file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"chat_template_file {params.chat_template_file} cannot be read: {error}"
        ) from error
