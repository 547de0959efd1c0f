"""One llama.cpp model and context, on llama.cpp's raw functions. Not thread-safe: see `DeviceEngine`.

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

from pdd_core.errors import ContextOverflow, DeviceEngineFailed, ModelError
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
from pdd_llamacpp_adapter.engine.kv.context_cells import SEQUENCES, ContextCells
from pdd_llamacpp_adapter.engine.kv.kv_support import KVSupport, supported, unsuited
from pdd_llamacpp_adapter.engine.kv.layout_check import layout_fault
from pdd_llamacpp_adapter.engine.kv.model_facts import model_facts
from pdd_llamacpp_adapter.engine.kv.sequence_state import CellLayout
from pdd_llamacpp_adapter.engine.shared_model import SharedModel

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence
    from pathlib import Path

    from pdd_core.llama_params import LlamaParams
    from pdd_llamacpp_adapter.engine.history import RefinedHistory
    from pdd_llamacpp_adapter.engine.kv.kv_support import KVShape

logger = logging.getLogger(__name__)

OUTPUTS = 32
"""Tokens of one batch that can have logits, unless told otherwise. llama.cpp reserves memory for so many rows of
the vocabulary: 512, which is its default, take half a gigabyte for one of 262,144 tokens."""
_TRIAL_TOKENS = 32
"""Of the batch by which threads are tried: enough to be a batch, and short on any device."""
_TRIALS = 4
_TRIAL_S = 1.0
"""Seconds for all trials with one number of threads: on a busy machine, one step with too many can take longer."""
_SEQUENCE = 0
_ABORTED = 2


class LlamaContext:
    """A model, a context of one sequence, the ids its memory holds, and cells that wait to be joined to them."""

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
        self._ctx: Any = None
        self._batch: Any = None
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
        self._make_context(self._context_params())
        self.n_ctx_train = int(L.llama_model_n_ctx_train(loaded))
        """The longest text that the model was trained on, or YaRN was set up for, tokens; 0 where unknown."""
        if 0 < self.n_ctx_train < self.n_ctx:
            logger.warning(
                "n_ctx is %d, but this model was trained on at most %d tokens: beyond these, answers get worse",
                self.n_ctx, self.n_ctx_train,
            )  # fmt: skip
        with held_signals():
            refused = add_adapters(self._ctx, loaded, params)
        if refused is not None:
            self.close()
            raise ModelError(f"llama.cpp cannot load the LoRA adapter {refused}: {llama_log.reason()}")
        self.ids: list[int] = []
        """What the memory holds; agrees with llama.cpp's own count after every call, failed ones included."""
        self.history: RefinedHistory | None = None
        """The refined prompt that the first of `ids` are; None where they are none."""
        self._watched: AbortFlag | None = None
        self._trial: AbortFlag | None = None
        self._window = int(L.llama_model_n_swa(loaded))
        self.drops = not (L.llama_model_is_recurrent(loaded) or L.llama_model_is_hybrid(loaded))
        """Whether the last tokens can be dropped without the others."""
        self._n_vocab = int(L.llama_vocab_n_tokens(L.llama_model_get_vocab(loaded)))
        self._allocate_batch(params.batch_size)
        self.cells: ContextCells | None = None
        """Those that wait; None where it takes in none."""
        if self.kv.shape is not None:
            self._open_cells(self.kv.shape)
        self.threads = self._try_threads()
        """CPU threads for single tokens, and for batches."""

    def _context_params(self) -> Any:
        made = context_params(self.params, outputs=self.most_outputs)
        if self.kv.shape is not None:
            made.n_seq_max, made.kv_unified = SEQUENCES, True
            # llama.cpp ends the process where there is not one for each sequence
            made.n_outputs_max = max(made.n_outputs_max, SEQUENCES)
        return made

    def _make_context(self, made: Any) -> None:
        """Make the context, in the place of the one there is.

        Raises:
            DeviceEngineFailed: llama.cpp cannot; everything is freed.
        """
        if self._ctx:
            L.llama_free(self._ctx)
        llama_log.forget()
        with held_signals():
            self._ctx = L.llama_init_from_model(self.model.handle, made)
        if not self._ctx:
            self.close()
            raise DeviceEngineFailed(
                f"llama.cpp cannot make a context of {made.n_ctx} tokens: {llama_log.reason()}"
            )
        self._memory = L.llama_get_memory(self._ctx)
        self.n_ctx = min(int(made.n_ctx), int(L.llama_n_ctx_seq(self._ctx)))
        self.n_batch = int(L.llama_n_batch(self._ctx))
        self._n_ubatch = int(L.llama_n_ubatch(self._ctx))

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
                self.decode(ids, want_logits=True)
                taken.append(time.perf_counter() - begun)
                self.rewind(0)
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
            cells = ContextCells(self._ctx, self.ids, CellLayout(shape, kind, not flash, self.n_ctx, ggml.pack))
            fault = layout_fault(cells)
            L.llama_memory_clear(self._memory, True)
            if fault is None:
                self.cells = cells
                return
        logger.warning("the device takes in no KV cache: %s", fault)
        self.kv = KVSupport(None, fault or "")

    def _allocate_batch(self, capacity: int) -> None:
        self._batch = L.llama_batch_init(capacity, 0, 1)
        fields = (self._batch.token, self._batch.pos, self._batch.logits, self._batch.n_seq_id)
        self._token, self._pos, self._wanted, n_seq_id = (np.ctypeslib.as_array(f, (capacity,)) for f in fields)
        n_seq_id[:] = 1
        for i in range(capacity):
            self._batch.seq_id[i][0] = _SEQUENCE

    def decode(self, ids: Sequence[int], *, want_logits: bool, outputs: Collection[int] = ()) -> np.ndarray | None:
        """Process `ids` behind what the memory holds, in one llama_decode.

        Returns the last token's logits, float32 of shape (n_vocab,), a copy; None unless wanted. Those of the
        indices in `outputs` can be read with `logits_at` until the next call.

        Raises:
            ContextOverflow: no room for them; nothing was done.
            DecodeAborted: told to stop; the memory holds what it held before.
            DeviceEngineFailed: any other return code; the memory holds what it held before.
        """
        count, past = len(ids), len(self.ids)
        if not 1 <= count <= self.n_batch:
            raise DeviceEngineFailed(f"a batch has 1 to {self.n_batch} tokens, not {count}")
        if past + count > self.n_ctx:
            raise ContextOverflow(f"{past} + {count} tokens do not fit a context of {self.n_ctx}")
        if not (min(ids) >= 0 and max(ids) < self._n_vocab):
            raise DeviceEngineFailed(f"a token id lies outside the model's {self._n_vocab} tokens")
        if len({*outputs, count - 1} if want_logits else set(outputs)) > self.most_outputs:
            raise DeviceEngineFailed(f"a batch has logits of {self.most_outputs} tokens at most")
        if self.cells and past + count + len(self.cells) > self.n_ctx:
            self.cells.drop()  # they take up room, and what they were for has been processed
        self._watch(self._trial or (self._abort if count > 1 else None))
        self._batch.n_tokens = count
        self._token[:count] = ids
        self._pos[:count] = np.arange(past, past + count)
        self._wanted[:count] = 0
        self._wanted[count - 1] = want_logits
        for index in outputs:
            self._wanted[index] = 1
        llama_log.forget()
        code = L.llama_decode(self._ctx, self._batch)
        if code != 0:
            # a large batch may be partly processed when it is aborted
            self._undo(past)
            if code == _ABORTED:
                raise DecodeAborted
            raise DeviceEngineFailed(
                f"llama_decode returned {code} for {count} tokens at position {past}: {llama_log.reason()}"
            )
        self.ids.extend(ids)
        if (held := self._held()) != len(self.ids):
            self.rewind(0)
            raise DeviceEngineFailed(f"llama.cpp holds {held} tokens where {past + count} were processed")
        # llama.cpp overwrites its own with the next decode
        return self.logits_at(count - 1).copy() if want_logits else None

    @property
    def most_drafted(self) -> int:
        """Tokens that may be processed behind the next one and dropped again; 0 where the model cannot drop any.

        A memory with a sliding window drops old cells for new ones; those that it has to keep are not among them
        if all of the batch is computed at once.
        """
        if not self.drops:
            return 0
        most = min(self.n_batch, self._n_ubatch, self.most_outputs, self.n_ctx - len(self.ids)) - 1
        first = int(L.llama_memory_seq_pos_min(self._memory, _SEQUENCE))
        return most if first <= 0 else min(most, len(self.ids) + 1 - self._window - first)

    def _watch(self, flag: AbortFlag | None) -> None:
        """Have llama.cpp stop when `flag` is raised; None for single tokens.

        A step is over soon. And what an aborted batch had begun is dropped, which a recurrent model cannot do
        without dropping all it holds: an answer's last step is not worth that.
        """
        if flag is self._watched:
            return
        if flag is None:
            L.llama_set_abort_callback(self._ctx, L.ggml_abort_callback(0), ctypes.c_void_p(0))
        else:
            question = ctypes.cast(flag.question, L.ggml_abort_callback)
            L.llama_set_abort_callback(self._ctx, question, flag.data)
        self._watched = flag

    def logits_at(self, index: int) -> np.ndarray:
        """Return llama.cpp's own logits of token `index` of the last batch, float32 of shape (n_vocab,).

        Raises:
            DeviceEngineFailed: that call of `decode` was not asked for them.
        """
        asked = 0 <= index < self._batch.n_tokens and self._wanted[index]
        pointer = L.llama_get_logits_ith(self._ctx, index) if asked else None
        if not pointer:
            raise DeviceEngineFailed(f"llama.cpp has no logits for token {index} of its last batch")
        logits: np.ndarray = np.ctypeslib.as_array(pointer, (self._n_vocab,))
        return logits

    def use_threads(self, count: int, batch: int | None = None) -> None:
        """Compute with `count` CPU threads from now on, and batches with `batch`, or as many."""
        L.llama_set_n_threads(self._ctx, count, batch or count)

    def rewind(self, length: int) -> int:
        """Keep the first `length` tokens, or none where that cannot be had exactly. Returns how many are kept.

        Cells that wait stay where some tokens are kept.

        With a sliding window, llama.cpp drops old cells yet reports success for a rewind that needs them.
        """
        if length and self._holds_window(length) and L.llama_memory_seq_rm(self._memory, _SEQUENCE, length, -1):
            del self.ids[length:]
            if self._held() == length == len(self.ids):
                if self.history is not None and length < len(self.history.ids):
                    self.history = None
                return length
        L.llama_memory_clear(self._memory, True)
        if self.cells is not None:
            self.cells.forget()
        self.ids.clear()
        self.history = None
        return 0

    def _undo(self, length: int) -> None:
        """Drop what a batch that failed behind `length` tokens has begun, and no cells that wait."""
        if length or not self.cells:
            self.rewind(length)
        else:
            L.llama_memory_seq_rm(self._memory, _SEQUENCE, -1, -1)

    def _holds_window(self, length: int) -> bool:
        first = int(L.llama_memory_seq_pos_min(self._memory, _SEQUENCE))
        return first == 0 or (self._window > 0 and 0 <= first <= length - self._window)

    def _held(self) -> int:
        return int(L.llama_memory_seq_pos_max(self._memory, _SEQUENCE)) + 1

    def state_size(self) -> int:
        """Return the bytes that `state` would have."""
        return int(L.llama_state_seq_get_size(self._ctx, _SEQUENCE))

    def state(self) -> np.ndarray:
        """Return a copy of the memory in llama.cpp's own form, uint8.

        Raises:
            DeviceEngineFailed: llama.cpp cannot make one.
        """
        llama_log.forget()
        state: np.ndarray = np.empty(self.state_size(), dtype=np.uint8)
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        if L.llama_state_seq_get_data(self._ctx, pointer, state.size, _SEQUENCE) != state.size:
            raise DeviceEngineFailed(f"llama.cpp cannot copy its memory: {llama_log.reason()}")
        return state

    def load(self, state: np.ndarray, ids: Sequence[int]) -> None:
        """Make `state` the memory, which holds `ids`.

        Raises:
            DeviceEngineFailed: llama.cpp does not take it; the memory is then empty.
        """
        self.rewind(0)
        llama_log.forget()
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        taken = L.llama_state_seq_set_data(self._ctx, pointer, state.size, _SEQUENCE)
        self.ids.extend(ids)
        if taken != state.size or self._held() != len(ids):
            self.rewind(0)
            raise DeviceEngineFailed(f"llama.cpp does not take its memory back: {llama_log.reason()}")

    def close(self) -> None:
        """Free everything; the model where the last call with it ends. Harmless when repeated."""
        if self._batch is not None:
            L.llama_batch_free(self._batch)
            self._batch = None
        if self._ctx:
            L.llama_free(self._ctx)
            self._ctx = None
        self.model.close()


def _check_gguf(path: Path) -> None:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ModelError(f"cannot read the model file {path}: {error.strerror}") from error
    if magic != b"GGUF":
        raise ModelError(f"{path} is not a GGUF file: it begins with {magic!r}")
