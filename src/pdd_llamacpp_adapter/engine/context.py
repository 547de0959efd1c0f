"""One llama.cpp model and context, on llama.cpp's raw functions. Not thread-safe: see `DeviceEngine`.

Its sequences share it: what they want processed goes into one llama_decode, which reads the weights once for all.

Raw, because each of these must be ours to decide: what one llama_decode holds, which return code means what, where
logits are wanted, and when to abort. Several mistakes at this level end the process without an exception (a batch
above n_batch, reading logits that were not asked for, a freed context); this module is where they are ruled out.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
import time
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions
import numpy as np

from pdd_core.errors import DeviceEngineFailed, ModelError
from pdd_core.kv.cell_types import CellType
from pdd_llamacpp_adapter.engine import llama_log
from pdd_llamacpp_adapter.engine.abort_flag import AbortFlag, DecodeAborted
from pdd_llamacpp_adapter.engine.hardware.backends import installed_backends
from pdd_llamacpp_adapter.engine.hardware.model_size import model_size
from pdd_llamacpp_adapter.engine.hardware.placement import placed
from pdd_llamacpp_adapter.engine.hardware.structs import NUMA, add_adapters, context_params, model_params
from pdd_llamacpp_adapter.engine.hardware.threads import fastest, physical_cores, wanted
from pdd_llamacpp_adapter.engine.held_signals import held_signals
from pdd_llamacpp_adapter.engine.kv import ggml
from pdd_llamacpp_adapter.engine.kv.context_cells import CellSequences, ContextCells
from pdd_llamacpp_adapter.engine.kv.kv_support import KVSupport, supported, unsuited
from pdd_llamacpp_adapter.engine.kv.layout_check import layout_fault
from pdd_llamacpp_adapter.engine.kv.model_facts import model_facts
from pdd_llamacpp_adapter.engine.kv.sequence_state import CellLayout
from pdd_llamacpp_adapter.engine.llama_batch import LlamaBatch
from pdd_llamacpp_adapter.engine.llama_sequence import LlamaSequence
from pdd_llamacpp_adapter.engine.shared_model import SharedModel

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pdd_core.llama_params import LlamaParams
    from pdd_llamacpp_adapter.engine.kv.kv_support import KVShape
    from pdd_llamacpp_adapter.engine.tasks import Part

logger = logging.getLogger(__name__)

OUTPUTS = 32
"""Tokens of one batch that can have logits, unless told otherwise. llama.cpp reserves memory for so many rows of
the vocabulary: 512, which is its default, take half a gigabyte for one of 262,144 tokens."""
_TRIAL_TOKENS = 32
"""Of the batch by which threads are tried: enough to be a batch, and short on any device."""
_TRIALS = 4
_TRIAL_S = 1.0
"""Seconds for all trials with one number of threads: on a busy machine, one step with too many can take longer."""
_ABORTED = 2


class LlamaContext:
    """A model, and a context whose `sequences` share its memory and its batches."""

    def __init__(
        self,
        path: Path,
        params: LlamaParams,
        *,
        abort: AbortFlag | None = None,
        kv: bool = False,
        outputs: int = OUTPUTS,
    ) -> None:
        """Load `path`. Without `abort`, a call of `decode` runs to its end.

        With `kv`, cells that were computed elsewhere can be taken in, where model and settings allow it (`kv`). Of
        one batch, at most `outputs` tokens can have logits.

        Raises:
            ConfigurationError: a setting that this build of llama.cpp cannot obey; no weight was read.
            ModelError: no such file, not GGUF, or llama.cpp cannot read it.
            DeviceEngineFailed: there is not the memory, or llama.cpp cannot make a context of this size.
        """
        _check_gguf(path)
        llama_log.listen()
        L.llama_backend_init()
        if params.numa is not None:
            L.llama_numa_init(NUMA[params.numa])
        self.handle: Any = None
        """llama.cpp's pointer."""
        self.most_outputs = outputs
        """Tokens of one batch that can have logits."""
        self.params = params
        with held_signals():
            size = model_size(path)
        self.placement = placed(params, installed_backends(), size, outputs=outputs)
        """Where the model is."""
        for_model, kept = model_params(params, self.placement)
        llama_log.forget()
        with held_signals():  # it logs, hence calls back
            loaded = L.llama_model_load_from_file(str(path).encode(), for_model)
        del kept
        if not loaded:
            raise ModelError(f"llama.cpp cannot load {path}: {llama_log.reason()}")
        self.model = SharedModel(loaded, L.llama_model_free)
        self._abort = abort
        reason = unsuited(params) if kv else KVSupport().reason
        self.kv = supported(model_facts(loaded, path)) if reason is None else KVSupport(None, reason)
        """Whether it takes in cells, and of what shape."""
        self.sequences = tuple(LlamaSequence(self, number) for number in range(params.parallel))
        """Each holds a text of its own."""
        self._make_context(self._context_params())
        self.n_ctx_train = int(L.llama_model_n_ctx_train(loaded))
        """The longest text that the model was trained on, or YaRN was set up for, tokens; 0 where unknown."""
        if 0 < self.n_ctx_train < self.n_ctx:
            logger.warning(
                "n_ctx is %d, but this model was trained on at most %d tokens: beyond these, answers get worse",
                self.n_ctx, self.n_ctx_train,
            )  # fmt: skip
        with held_signals():
            refused = add_adapters(self.handle, loaded, params)
        if refused is not None:
            self.close()
            raise ModelError(f"llama.cpp cannot load the LoRA adapter {refused}: {llama_log.reason()}")
        self._watched: AbortFlag | None = None
        self._trial: AbortFlag | None = None
        self.window = int(L.llama_model_n_swa(loaded))
        """Tokens of the model's sliding window; 0 without one."""
        self.drops = not (L.llama_model_is_recurrent(loaded) or L.llama_model_is_hybrid(loaded))
        """Whether the last tokens of a sequence can be dropped without the others."""
        self.n_vocab = int(L.llama_vocab_n_tokens(L.llama_model_get_vocab(loaded)))
        self._batch = LlamaBatch(params.batch_size)
        if self.kv.shape is not None:
            self._open_cells(self.kv.shape)
        self.threads = self._try_threads()
        """CPU threads for single tokens, and for batches."""

    def _context_params(self) -> Any:
        made = context_params(self.params, outputs=self.most_outputs)
        count = self.params.parallel if self.kv.shape is None else CellSequences.count(self.params.parallel)
        if count > 1:
            made.n_seq_max, made.kv_unified = count, True
            # llama.cpp ends the process where there is not one for each sequence
            made.n_outputs_max = max(made.n_outputs_max, count)
        return made

    def _make_context(self, made: Any) -> None:
        """Make the context, in the place of the one there is.

        Raises:
            DeviceEngineFailed: llama.cpp cannot; everything is freed.
        """
        if self.handle:
            L.llama_free(self.handle)
        llama_log.forget()
        with held_signals():
            self.handle = L.llama_init_from_model(self.model.handle, made)
        if not self.handle:
            self.close()
            raise DeviceEngineFailed(
                f"llama.cpp cannot make a context of {made.n_ctx} tokens: {llama_log.reason()}"
            )
        self.memory = L.llama_get_memory(self.handle)
        self.n_ctx = min(int(made.n_ctx), int(L.llama_n_ctx_seq(self.handle))) // len(self.sequences)
        """Tokens that fit each sequence."""
        self.n_batch = int(L.llama_n_batch(self.handle))
        self.n_ubatch = int(L.llama_n_ubatch(self.handle))

    def _try_threads(self) -> tuple[int, int]:
        """Compute with the threads that are asked for, or fewer if these are faster now; return both numbers."""
        one = wanted(self.params.threads, physical_cores())
        one = fastest(one, lambda count: self._seconds([0], count))
        many = wanted(self.params.threads_batch, one)  # what is too many for one token is so for a batch
        batch = [0] * min(_TRIAL_TOKENS, self.n_batch, self.n_ctx // 2)
        many = fastest(many, lambda count: self._seconds(batch, count))
        self.use_threads(one, many)
        return one, many

    def _seconds(self, ids: Sequence[int], count: int) -> float:
        """Return what a batch takes with `count` threads in an empty memory; infinity beyond `_TRIAL_S`."""
        self._trial = AbortFlag()
        limit = threading.Timer(_TRIAL_S, setattr, (self._trial, "raised", True))
        self.use_threads(count)
        taken = []
        limit.start()
        try:
            for _ in range(_TRIALS):
                begun = time.perf_counter()
                self.sequences[0].decode(ids, want_logits=True)
                taken.append(time.perf_counter() - begun)
                self.sequences[0].rewind(0)
        except DecodeAborted:
            pass
        finally:
            limit.cancel()
            self._trial = None
        return min(taken[1:], default=math.inf)  # the first one wakes the threads

    def _open_cells(self, shape: KVShape) -> None:
        # with flash attention, values are not transposed; llama.cpp does not say what auto has become
        fault: str | None = ""
        for flash in {"on": (True,), "off": (False,), "auto": (True, False)}[self.params.flash_attn]:
            kind = CellType(self.params.cache_type_k)
            layout = CellLayout(shape, kind, not flash, self.n_ctx, ggml.pack)
            cells = [ContextCells(sequence, len(self.sequences), layout) for sequence in self.sequences]
            fault = layout_fault(cells[0])
            L.llama_memory_clear(self.memory, True)
            if fault is None:
                for sequence, own in zip(self.sequences, cells, strict=True):
                    sequence.cells = own
                return
        logger.warning("the device takes in no KV cache: %s", fault)
        self.kv = KVSupport(None, fault or "")

    def decode(self, parts: Sequence[Part]) -> None:
        """Process `parts` in one llama_decode, each behind what its sequence holds. It is done when this returns.

        The logits of their `outputs` can be read until the next call.

        Raises:
            ContextOverflow: no room for one of them; nothing was done.
            DecodeAborted: told to stop; the sequences hold what they held before.
            DeviceEngineFailed: any other return code; the sequences hold what they held before.
        """
        count, most = sum(len(part.ids) for part in parts), max(len(part.ids) for part in parts)
        if not 1 <= count <= self.n_batch or not all(part.ids for part in parts):
            raise DeviceEngineFailed(f"a batch has 1 to {self.n_batch} tokens, not {count}")
        if sum(len(part.outputs) for part in parts) > self.most_outputs:
            raise DeviceEngineFailed(f"a batch has logits of {self.most_outputs} tokens at most")
        for part in parts:
            part.sequence.check(part.ids)
        held = [len(part.sequence.ids) for part in parts]
        for part, past in zip(parts, held, strict=True):
            cells = part.sequence.cells
            if cells and past + len(part.ids) + len(cells) > self.n_ctx:
                cells.drop()  # they take up room, and what they were for has been processed
        self._watch(self._trial or (self._abort if most > 1 else None))
        self._batch.fill(parts)
        llama_log.forget()
        code = L.llama_decode(self.handle, self._batch.handle)
        if code != 0:
            reason = llama_log.reason()
            for part, past in zip(parts, held, strict=True):
                part.sequence.undo(past)  # a large batch may be partly processed when it is aborted
            if code == _ABORTED:
                raise DecodeAborted
            raise DeviceEngineFailed(
                f"llama_decode returned {code} for {count} tokens at position {held[0]}: {reason}"
            )
        if not any(part.outputs for part in parts):
            L.llama_synchronize(self.handle)  # a GPU is still computing, and who reads logits waits anyway
        for part in parts:
            part.sequence.ids.extend(part.ids)
        for part, past in zip(parts, held, strict=True):
            if (found := part.sequence.held()) != past + len(part.ids):
                for one in parts:
                    one.sequence.rewind(0)
                raise DeviceEngineFailed(
                    f"llama.cpp holds {found} tokens where {past + len(part.ids)} were processed"
                )

    def _watch(self, flag: AbortFlag | None) -> None:
        """Have llama.cpp stop when `flag` is raised; None for single tokens.

        A step is over soon. And what an aborted batch had begun is dropped, which a recurrent model cannot do
        without dropping all it holds: an answer's last step is not worth that.
        """
        if flag is self._watched:
            return
        if flag is None:
            L.llama_set_abort_callback(self.handle, L.ggml_abort_callback(0), ctypes.c_void_p(0))
        else:
            question = ctypes.cast(flag.question, L.ggml_abort_callback)
            L.llama_set_abort_callback(self.handle, question, flag.data)
        self._watched = flag

    def logits_at(self, row: int) -> np.ndarray:
        """Return llama.cpp's own logits of a token of the last batch, float32 of shape (n_vocab,).

        Raises:
            DeviceEngineFailed: that call of `decode` was not asked for them.
        """
        pointer = L.llama_get_logits_ith(self.handle, row) if self._batch.wants(row) else None
        if not pointer:
            raise DeviceEngineFailed(f"llama.cpp has no logits for token {row} of its last batch")
        logits: np.ndarray = np.ctypeslib.as_array(pointer, (self.n_vocab,))
        return logits

    def use_threads(self, count: int, batch: int | None = None) -> None:
        """Compute with `count` CPU threads from now on, and batches with `batch`, or as many."""
        L.llama_set_n_threads(self.handle, count, batch or count)

    def clear_if_empty(self) -> None:
        """Overwrite all cells if none is in use, so that nothing of an answer that went wrong is left."""
        if not any(sequence.ids or sequence.cells for sequence in self.sequences):
            L.llama_memory_clear(self.memory, True)

    @property
    def closed(self) -> bool:
        """Whether it is freed, or about to be."""
        return self.model.closed

    def close(self) -> None:
        """Free everything; the model where the last call with it ends. Harmless when repeated."""
        if self.handle:
            L.llama_free(self.handle)
            self.handle = None
        self.model.close()


def _check_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"cannot read the model file {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file: it begins with {magic!r}")
