"""Reads the attention of a prompt's last tokens out of llama.cpp, with neither vLLM nor torch.

llama.cpp shows each node of its graph to an eval callback (``llama_context_params.cb_eval``), and without flash
attention each layer's softmax weights are such a node, ``kq_soft_max-<layer>``. For evaluations: a device that
answers takes its scores from the cloud.
"""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions
import numpy as np

from pdd_core.errors import DeviceEngineFailed, ModelError
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter.engine.context import LlamaContext
from pdd_llamacpp_adapter.engine.libggml import installed_ggml

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from pdd_core.refinement.scores import Attention

NODE = "kq_soft_max-"
"""What ``llm_graph_context::build_attn_mha`` calls a layer's softmax weights, before the layer's number."""
ROW_SUM_TOLERANCE = 1e-3
"""By how much the weights of one query may miss a sum of 1 in float32."""
_BEYOND = 64
"""Tokens before a sliding window, by which it is told: a layer without one looks at some of them."""
CHUNK = 128
"""Tokens of the prompt before the window that go into one llama_decode."""


def chunks(begin: int, end: int) -> Iterator[tuple[int, int]]:
    """Yield spans that cover the positions from `begin` to `end`, none of a single token unless there is no other.

    llama.cpp has another kernel for single tokens, whose results differ in the last bits. Without them, results
    are the same bits however a prompt is cut.
    """
    while begin < end:
        stop = end if end - begin <= CHUNK + 1 else begin + CHUNK
        yield begin, stop
        begin = stop


class _TensorHead(ctypes.Structure):
    """The first fields of ``struct ggml_tensor`` (ggml.h), up to the strides."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
    )


libggml = installed_ggml()
_get_name = libggml.ggml_get_name
_get_name.argtypes, _get_name.restype = [ctypes.c_void_p], ctypes.c_char_p
_tensor_get = libggml.ggml_backend_tensor_get
_tensor_get.argtypes, _tensor_get.restype = (
    [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t],
    None,
)


class AttentionContext(LlamaContext):
    """A `LlamaContext` that can be asked for attention. Not for serving: flash attention is off."""

    def __init__(self, path: Path, *, n_ctx: int, n_threads: int, n_batch: int = 512) -> None:
        """Load `path`.

        Raises:
            ModelError: no such file, not GGUF, or llama.cpp cannot read it.
            DeviceEngineFailed: llama.cpp cannot make a context of this size.
        """
        # with one thread none is tried: the context that is used is made below, with `n_threads`
        params = LlamaParams.of(n_ctx=n_ctx, threads=1, batch_size=n_batch)
        super().__init__(path, params, outputs=n_batch)
        self.n_layer = int(L.llama_model_n_layer(self.model.handle))
        self._wanted_layers: Collection[int] = ()
        self._seen: dict[int, np.ndarray] = {}
        self._failure: Exception | None = None
        # llama.cpp keeps the pointer: this reference has to live as long as the context
        self._on_node = L.ggml_backend_sched_eval_callback(self._look)
        self._remake(n_ctx, n_threads)

    def _remake(self, n_ctx: int, n_threads: int) -> None:
        """Make the context again: the callback can only be given when a context is made."""
        made = self._context_params()
        made.n_ctx = n_ctx
        made.n_threads = made.n_threads_batch = n_threads
        made.cb_eval = self._on_node
        self._make_context(made)
        self.sequences[0].ids.clear()

    def attention(self, ids: Sequence[int], *, window: int, layers: Collection[int] | None = None) -> Attention:
        """Prefill the prompt `ids` from scratch and return the attention of its last `window` tokens.

        The logits of the last token can then be read with `logits_at(len of the last batch - 1)`.

        Args:
            ids: the prompt, at least one token.
            window: how many of its last tokens are looked at; all of them, if it has fewer.
            layers: numbers of the layers to read, all by default.

        Raises:
            ModelError: this model computes no such weights in a layer: state-space, latent attention (MLA).
            ContextOverflow: the prompt does not fit.
            DeviceEngineFailed: llama.cpp failed, or laid the weights out as we do not know.
        """
        window = min(window, len(ids), self.n_batch)
        wanted = sorted(range(self.n_layer) if layers is None else set(layers))
        seen = self._shown(ids, window, wanted)
        if missing := [layer for layer in wanted if layer not in seen]:
            raise ModelError(
                f"this model shows no attention weights in layer {missing[0]} ({len(missing)} of {len(wanted)} "
                "layers): state-space layers and latent attention (MLA) have none that could be read"
            )
        return {layer: _checked(seen[layer], len(ids), window) for layer in wanted}

    def evict(self, start: int, end: int) -> None:
        """Drop the cells from `start` to `end`, and keep what lies behind them: no device does, for comparison."""
        L.llama_memory_seq_rm(self.memory, 0, start, end)

    def full_layers(self) -> tuple[int, ...]:
        """Return the layers that attend to all of a prompt with keys of their own, as the cloud's capture wants.

        These are neither layers with a sliding window or chunks, nor those without attention weights. No field of
        a GGUF tells this for all models: many have their pattern in llama.cpp's code. So a prompt that is longer
        than the window is read, in a larger context if it has to be.

        Raises:
            DeviceEngineFailed: llama.cpp failed.
        """
        length = self.window + _BEYOND
        if length > self.n_ctx:
            self._remake(length, L.llama_n_threads(self.handle))
        seen = self._shown([0] * length, 1, range(self.n_layer - self._sharing_layers()))
        return tuple(layer for layer in sorted(seen) if seen[layer][:, -1, :_BEYOND].any())

    def _sharing_layers(self) -> int:
        """Return how many of the last layers read the keys of an earlier one."""
        value = ctypes.create_string_buffer(64)
        L.llama_model_meta_val_str(self.model.handle, b"general.architecture", value, len(value))
        key = value.value + b".attention.shared_kv_layers"
        found = L.llama_model_meta_val_str(self.model.handle, key, value, len(value)) > 0
        return int(value.value) if found else 0

    def _shown(self, ids: Sequence[int], window: int, wanted: Collection[int]) -> dict[int, np.ndarray]:
        """Prefill `ids` and return the weights of the last `window` tokens, by `wanted` layer that has any."""
        self.sequences[0].rewind(0)
        before = len(ids) - window
        for start, end in chunks(0, before):
            self.sequences[0].decode(ids[start:end], want_logits=False)
        self._wanted_layers, self._seen, self._failure = frozenset(wanted), {}, None
        try:
            self.sequences[0].decode(ids[before:], want_logits=False, outputs=[window - 1])
        finally:
            self._wanted_layers = ()
        if self._failure is not None:
            raise DeviceEngineFailed(f"llama.cpp's attention cannot be read: {self._failure}") from self._failure
        return self._seen

    def _look(self, tensor: int, ask: bool, _: object) -> bool:
        # True to `ask` means: stop here and show me the values. Otherwise True means: go on.
        if not self._wanted_layers:
            return not ask
        try:
            name = _get_name(tensor)
            if not name.startswith(NODE.encode()):
                return not ask
            layer = int(name[len(NODE) :])
            if layer in self._wanted_layers and not ask:
                self._seen[layer] = _read(tensor)
        except Exception as error:  # noqa: BLE001 - it must not pass through C; `attention` raises it
            self._failure = error
            return not ask
        return layer in self._wanted_layers or not ask


def _read(tensor: int) -> np.ndarray:
    """Return a copy of a tensor, float32 of shape (heads, queries, cells)."""
    head = ctypes.cast(tensor, ctypes.POINTER(_TensorHead)).contents
    cells, queries, heads, streams = head.ne
    size = ctypes.sizeof(ctypes.c_float)
    dense = [size, size * cells, size * cells * queries, size * cells * queries * heads]
    if head.type != L.GGML_TYPE_F32 or streams != 1 or list(head.nb) != dense:
        raise DeviceEngineFailed(f"type {head.type}, shape {list(head.ne)}, strides {list(head.nb)}")
    values = np.empty((heads, queries, cells), dtype=np.float32)
    _tensor_get(tensor, values.ctypes.data, 0, values.nbytes)
    return values


def _checked(values: np.ndarray, length: int, window: int) -> np.ndarray:
    """Return the columns of the prompt's tokens. Cells of llama.cpp's memory are positions only in a fresh one."""
    own: np.ndarray = values[:, :, :length]
    ahead = np.triu(np.ones((window, length), dtype=bool), k=length - window + 1)
    sums = own.sum(axis=-1)
    if values.shape[1] != window or np.abs(sums - 1).max() > ROW_SUM_TOLERANCE or own[:, ahead].any():
        raise DeviceEngineFailed("llama.cpp's attention weights are not in the order of the prompt, or have sinks")
    return own


def n_ctx_train(context: LlamaContext) -> int:
    """Return the tokens of context that the model was trained for."""
    return int(L.llama_model_n_ctx_train(context.model.handle))
