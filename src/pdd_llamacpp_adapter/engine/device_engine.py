"""The device's engine: llama.cpp on a thread of its own, awaited from the event loop.

llama.cpp computes with the GIL released, but a context belongs to one thread at a time. So one thread makes every
call that computes, and the event loop only ever waits.
"""

from __future__ import annotations

import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pdd_core.errors import ConfigurationError
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter.engine.batcher import Batcher
from pdd_llamacpp_adapter.engine.engine_queue import EngineQueue
from pdd_llamacpp_adapter.engine.engine_thread import EngineThread
from pdd_llamacpp_adapter.engine.sharing import Sharing
from pdd_llamacpp_adapter.engine.slot import Slot
from pdd_llamacpp_adapter.engine.tasks import Part

if TYPE_CHECKING:
    import os
    from collections.abc import Sequence
    from contextlib import AbstractAsyncContextManager

    from pdd_core.sampling_defaults import DefaultSamplingParams
    from pdd_llamacpp_adapter.engine.context import LlamaContext
    from pdd_llamacpp_adapter.engine.hardware.placement import Placement
    from pdd_llamacpp_adapter.engine.kv.kv_support import KVSupport
    from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary


class DeviceEngine:
    """A GGUF model, ready to answer. Each answer has a slot; one that finds none free waits in `exclusive`.

    A context manager; `close` frees the model.
    """

    def __init__(self, context: LlamaContext, thread: EngineThread, vocab: Vocabulary) -> None:
        """Use `DeviceEngine.open`."""
        self._context = context
        self._thread = thread
        self.sharing = Sharing(len(context.sequences))
        """How much its answers slow each other down."""
        self._batcher = Batcher(context, thread, self.sharing)
        self.vocab = vocab
        """The model's tokens."""
        self.slots = tuple(Slot(sequence, thread, self._batcher) for sequence in context.sequences)
        """Where answers are made, `LlamaParams.parallel` of them."""
        self.queue = EngineQueue(self.slots)
        """Who has them."""

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
            kv: take in prompts' KV caches that were computed elsewhere, where the model allows it (`kv`).
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
        if self._context.closed:
            return
        self._batcher.close()
        self._thread.stop(self._context.close)

    def reset(self) -> None:
        """Forget all answers, so that the next ones start cold. Blocks; not while an answer is being made."""
        for slot in self.slots:
            slot.reset()

    @property
    def n_ctx(self) -> int:
        """Tokens that fit each slot, prompt and answer together."""
        return self._context.n_ctx

    @property
    def n_ctx_train(self) -> int:
        """Tokens of the longest text that the model was trained on; 0 where the file does not say."""
        return self._context.n_ctx_train

    @property
    def placement(self) -> Placement:
        """Where the model is: on which GPUs, and how much of it."""
        return self._context.placement

    @property
    def threads(self) -> tuple[int, int]:
        """CPU threads for single tokens, and for batches."""
        return self._context.threads

    @property
    def kv(self) -> KVSupport:
        """Whether cells that were computed elsewhere can be added, and of what shape."""
        return self._context.kv

    @cached_property
    def sampling_defaults(self) -> DefaultSamplingParams:
        """How the model's file would have tokens chosen."""
        from pdd_llamacpp_adapter.engine.sampling_defaults import sampling_defaults

        return sampling_defaults(self._context.model)

    @property
    def is_decoding(self) -> bool:
        """Whether answers are being decoded, whose tokens wait while a prompt is read."""
        return self._batcher.is_decoding

    def slot_for(self, prompt: Sequence[int]) -> Slot:
        """Return the slot that an answer to `prompt` would get now, or one like it if all are taken."""
        return self.queue.best(prompt)

    def exclusive(self, prompt: Sequence[int] = ()) -> AbstractAsyncContextManager[Slot]:
        """Hold a slot for one answer, that which has most of `prompt` already. Others wait in line."""
        return self.queue.answer(prompt)

    async def step_of(self, count: int) -> float:
        """Process one token in each of the first `count` slots, in one batch; return the seconds that it takes."""
        parts = [Part(sequence, (0,), (0,)) for sequence in self._context.sequences[:count]]

        def step() -> float:
            begun = time.perf_counter()
            self._context.decode(parts)
            parts[-1].logits_at(0)  # which waits for a GPU
            return time.perf_counter() - begun

        return await self._thread.call(step)


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
