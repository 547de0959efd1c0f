"""The device's engine: llama.cpp on a thread of its own, awaited from the event loop.

llama.cpp computes with the GIL released, but a context belongs to one thread at a time. So one thread makes every
call that computes, and the event loop only ever waits.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, TypeVar

import anyio

from pdd_core.errors import DeviceEngineFailed
from pdd_llamacpp_adapter.aborted import DecodeAborted

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence

    import numpy as np

    from pdd_core.timeline import TokenLogprobs
    from pdd_llamacpp_adapter.context import LlamaContext
    from pdd_llamacpp_adapter.vocab import Vocabulary

N_BATCH = 512
"""Most tokens of one llama_decode; also n_ubatch, so that an aborted call leaves nothing half done."""

T = TypeVar("T")


@dataclass(slots=True)
class _Job:
    """What the engine's thread is doing. `cancelled` is read by llama.cpp's abort callback."""

    cancelled: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """One step's token."""

    token: int
    last: bool
    """No token follows it."""
    logprobs: TokenLogprobs | None = None


class DeviceEngine:
    """A GGUF model, ready to answer. One answer at a time; a second one waits in `exclusive`.

    A context manager; `close` frees the model.
    """

    def __init__(self, executor: ThreadPoolExecutor) -> None:
        """Use `DeviceEngine.open`."""
        self._executor = executor
        self._job = _Job()
        self._context: LlamaContext | None = None
        self._vocab: Vocabulary | None = None
        self._turn = anyio.Lock()

    @classmethod
    def open(
        cls,
        gguf_path: str | os.PathLike[str],
        *,
        n_ctx: int = 4096,
        n_threads: int = 1,
        flash_attn: bool = False,
    ) -> Self:
        """Load a model.

        Args:
            gguf_path: the model file.
            n_ctx: tokens of prompt and answer together that fit.
            n_threads: CPU threads.
            flash_attn: faster for long prompts; greedy answers may then differ from vLLM's at near-ties.

        Raises:
            ModelError: the file is missing, unreadable or not a GGUF model.
            DeviceEngineFailed: llama.cpp cannot make a context of this size.
        """
        # here, so that this module can be imported where llama.cpp is not installed
        from pdd_llamacpp_adapter.context import LlamaContext
        from pdd_llamacpp_adapter.vocab import Vocabulary

        executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="llama")
        engine = cls(executor)

        def load() -> LlamaContext:
            return LlamaContext(
                Path(gguf_path),
                n_ctx=n_ctx,
                n_threads=n_threads,
                flash_attn=flash_attn,
                n_batch=min(N_BATCH, n_ctx),
                should_abort=lambda: engine._job.cancelled,
            )

        try:
            engine._context = executor.submit(load).result()
        except BaseException:
            executor.shutdown()
            raise
        engine._vocab = Vocabulary(engine._context.model)
        return engine

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop what is running and free the model. Harmless when repeated."""
        if self._context is None:
            return
        context, self._context = self._context, None
        self.vocab.close()
        self._job.cancelled = True
        self._executor.submit(context.close).result()
        self._executor.shutdown()

    @property
    def vocab(self) -> Vocabulary:
        """The model's tokens."""
        if self._vocab is None:
            raise DeviceEngineFailed("the engine is not open")
        return self._vocab

    @property
    def n_ctx(self) -> int:
        """Tokens that fit, prompt and answer together."""
        return self._open_context().n_ctx

    @property
    def n_past(self) -> int:
        """Tokens that the context holds."""
        return len(self._open_context().ids)

    def holds(self, prompt: Sequence[int]) -> int:
        """Return how many tokens of `prompt` the context holds now: what `start` would keep, called at once."""
        return common_prefix(self._open_context().ids, prompt[:-1])

    @asynccontextmanager
    async def exclusive(self) -> AsyncIterator[None]:
        """Hold the context for one answer; others wait in line."""
        async with self._turn:
            yield

    async def start(self, prompt: Sequence[int]) -> int:
        """Keep what the context holds of `prompt` already, drop the rest, and return how many tokens are kept.

        Always fewer than all: the last token has to be processed to give logits.
        """
        context = self._open_context()
        return await self._call(lambda: context.rewind(common_prefix(context.ids, prompt[:-1])))

    async def extend(self, ids: Sequence[int], *, want_logits: bool = False) -> np.ndarray | None:
        """Process `ids` behind what the context holds.

        Returns the last token's logits, float32 of shape (n_vocab,); None unless wanted. Cancelling the call stops
        llama.cpp within milliseconds, with the context at the end of the last complete batch.

        Raises:
            ContextOverflow: no room for them; nothing was done.
            DeviceEngineFailed: llama.cpp returned an error; the context holds what it held before.
        """
        context = self._open_context()
        if len(ids) <= context.n_batch:
            return await self._call(lambda: context.decode(ids, want_logits=want_logits))
        head, tail = ids[: context.n_batch], ids[context.n_batch :]
        await self._call(lambda: context.decode(head, want_logits=False))
        return await self.extend(tail, want_logits=want_logits)

    async def generate(self, logits: np.ndarray, choose: Callable[[np.ndarray], Choice]) -> AsyncGenerator[Choice]:
        """Make tokens, one step after the other, and yield each until one is the last.

        The thread does not wait for the event loop between two steps. Closing the generator stops it after the
        step in progress; the context may then hold a token more than were yielded.

        Args:
            logits: those behind what the context holds; changed in place.
            choose: called on the engine's thread with each step's logits; the last token is not processed.

        Raises:
            ContextOverflow: no room for another token.
            DeviceEngineFailed: llama.cpp returned an error; the context holds what it held before.
        """
        context, loop = self._open_context(), asyncio.get_running_loop()
        made: asyncio.Queue[Choice | None] = asyncio.Queue()

        def steps(job: _Job) -> None:
            following: np.ndarray | None = logits
            while following is not None and not job.cancelled:
                choice = choose(following)
                loop.call_soon_threadsafe(made.put_nowait, choice)
                following = None if choice.last else context.decode((choice.token,), want_logits=True)

        working = asyncio.ensure_future(self._call_with_job(steps))
        working.add_done_callback(lambda _: made.put_nowait(None))
        try:
            while (choice := await made.get()) is not None:
                yield choice
            await working
        finally:
            working.cancel()
            with anyio.CancelScope(shield=True):
                await asyncio.wait([working])

    async def rewind(self, length: int) -> int:
        """Keep the first `length` tokens, or none where that cannot be had exactly. Returns how many are kept."""
        context = self._open_context()
        return await self._call(lambda: context.rewind(min(length, len(context.ids))))

    def reset(self) -> None:
        """Forget everything, so that the next answer starts cold. Blocks; not while an answer is being made."""
        context = self._open_context()
        self._executor.submit(context.rewind, 0).result()

    def _open_context(self) -> LlamaContext:
        if self._context is None:
            raise DeviceEngineFailed("the engine is closed")
        return self._context

    async def _call(self, work: Callable[[], T]) -> T:
        """Run `work` on the engine's thread; see `_call_with_job`."""
        return await self._call_with_job(lambda _: work())

    async def _call_with_job(self, work: Callable[[_Job], T]) -> T:
        """Run `work` on the engine's thread. On cancellation, abort it and wait until the thread is free again."""
        job = _Job()

        def run() -> T:
            self._job = job
            if job.cancelled:
                raise DecodeAborted
            return work(job)

        future = asyncio.wrap_future(self._executor.submit(run))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            job.cancelled = True
            with anyio.CancelScope(shield=True):
                await asyncio.wait([future])
            future.exception()  # looked at, so that asyncio does not report it as forgotten
            raise
        except DecodeAborted as error:
            raise DeviceEngineFailed("the engine was closed while it was answering") from error


def common_prefix(held: Sequence[int], wanted: Sequence[int]) -> int:
    """Return how many leading ids two sequences share."""
    for index, (ours, theirs) in enumerate(zip(held, wanted, strict=False)):
        if ours != theirs:
            return index
    return min(len(held), len(wanted))
