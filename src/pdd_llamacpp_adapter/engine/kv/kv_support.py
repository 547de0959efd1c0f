"""Whether a prompt's cells can be handed to a GGUF model: what its file says of its cells, or why not."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.kv.cell_types import CellType
from pdd_core.kv.geometry import KV_VERSION
from pdd_llamacpp_adapter.engine.kv.key_order import KEY_ORDER, KeyOrder

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pdd_core.kv.geometry import KVGeometry
    from pdd_core.llama_params import LlamaParams

ROPE_TYPES = {0: KeyOrder.PAIRS, 2: KeyOrder.HALVES}
"""``LLAMA_ROPE_TYPE_NORM`` and ``LLAMA_ROPE_TYPE_NEOX``."""
_SAME = 1e-5
"""Relative: a file has float32, and llama.cpp tells six decimals of it."""


@dataclass(frozen=True, slots=True, eq=False)
class ModelFacts:
    """What llama.cpp says of a loaded model."""

    metadata: Mapping[str, str]
    """The file's fields, without arrays."""
    num_layers: int
    num_heads: int
    num_kv_heads: int
    """Of the first layer."""
    embedding: int
    """Width of a layer's input."""
    window: int
    """Tokens of its sliding window; 0 without one."""
    recurrent: bool
    """In all its layers, or some."""
    rope_type: int
    """``llama_model_rope_type``."""
    rope_freqs: np.ndarray | None = None
    """Tensor ``rope_freqs.weight``: what each frequency is divided by."""
    long_factors: bool = False
    """Whether there are tensors ``rope_factors_long`` and ``_short``."""

    def field(self, name: str) -> str | None:
        """Return the file's field `name` of this architecture; None where it is missing, or an array."""
        return self.metadata.get(f"{self.architecture}.{name}")

    @property
    def architecture(self) -> str:
        """``general.architecture``."""
        return self.metadata.get("general.architecture", "")


@dataclass(frozen=True, slots=True)
class KVShape:
    """What a model's cells look like."""

    num_layers: int
    num_kv_heads: int
    head_size: int
    theta: float
    rotary_dim: int
    scaling: str
    """In Hugging Face's word (``rope_type``)."""
    factor: float
    order: KeyOrder


@dataclass(frozen=True, slots=True)
class KVSupport:
    """The shape of a model's cells, or why none can be handed to it."""

    shape: KVShape | None = None
    reason: str = field(default="the KV cache is not switched on for this device")
    """Without a shape: why, for people."""

    def differs_from(self, geometry: KVGeometry) -> str | None:
        """Return why cells of `geometry` are none of this model's, by the first difference; None if they are."""
        ours, rope = self.shape, geometry.rope
        if ours is None:
            return self.reason
        compared = (
            ("version of the cells", KV_VERSION, geometry.version),
            ("number of layers", ours.num_layers, geometry.num_layers),
            ("number of KV heads", ours.num_kv_heads, geometry.num_kv_heads),
            ("size of a head", ours.head_size, geometry.head_size),
            ("RoPE's base", ours.theta, rope.theta),
            ("RoPE's scaling", ours.scaling, rope.scaling),
            ("RoPE's factor", ours.factor, rope.factor),
            ("RoPE's rotary dimensions", ours.rotary_dim, rope.rotary_dim),
        )
        for name, here, there in compared:
            if not _equal(here, there):
                return f"{name}: {here} in the device's file, {there} in the cloud"
        return None


def _equal(here: float | str, there: float | str) -> bool:
    if isinstance(here, str) or isinstance(there, str):
        return here == there
    return math.isclose(here, there, rel_tol=_SAME)


def unsuited(params: LlamaParams) -> str | None:
    """Return why cells of the cloud's cannot be had with the device's settings; None if they can."""
    if params.other_model:
        return f"{params.other_model[0]} makes the device's model another one than the cloud's"
    if params.cache_type_k != params.cache_type_v:
        return f"cache_type_k is {params.cache_type_k}, and cache_type_v is {params.cache_type_v}"
    if params.cache_type_k not in frozenset(CellType):
        return f"cells cannot be written to a cache of type {params.cache_type_k}"
    return None


class _Unsupported(Exception):
    """The message says why."""


def supported(model: ModelFacts) -> KVSupport:
    """Return the shape of a model's cells, or why they cannot be handed over."""
    try:
        return KVSupport(_shape(model), "")
    except _Unsupported as reason:
        return KVSupport(None, str(reason))


def _shape(model: ModelFacts) -> KVShape:
    architecture = model.architecture
    if model.recurrent:
        raise _Unsupported("the model is recurrent, at least in part: its state is not in cells")
    if model.field("attention.kv_lora_rank") is not None:
        raise _Unsupported("the model has latent attention (MLA): its cells are not keys and values")
    if model.window:
        raise _Unsupported("the model has a sliding window")
    if (order := KEY_ORDER.get(architecture)) is None:
        raise _Unsupported(f"it is not known how keys lie in models of architecture {architecture!r}")
    if ROPE_TYPES.get(model.rope_type) is not order:
        raise _Unsupported(f"llama.cpp has another RoPE than is known of {architecture!r}: type {model.rope_type}")
    if model.field("attention.head_count") is None or (
        model.field("attention.head_count_kv") is None and model.num_kv_heads != model.num_heads
    ):
        raise _Unsupported("the model's layers differ in their number of heads")
    usual = model.embedding // max(1, model.num_heads)
    head = int(model.field("attention.key_length") or usual)
    if head != int(model.field("attention.value_length") or usual):
        raise _Unsupported("the model's keys and values differ in size")
    rotary_dim = int(model.field("rope.dimension_count") or head)
    if rotary_dim != head and order is KeyOrder.PAIRS:
        raise _Unsupported("RoPE turns a part of each head only, in an order that is not known")
    scaling, factor = _scaling(model)
    theta = float(model.field("rope.freq_base") or 10_000.0)
    return KVShape(model.num_layers, model.num_kv_heads, head, theta, rotary_dim, scaling, factor, order)


def _scaling(model: ModelFacts) -> tuple[str, float]:
    """Return the scaling in Hugging Face's word, and its factor.

    The converter writes llama3 as a tensor of factors, one for each frequency, and nothing into the metadata
    (conversion/llama.py, ``generate_extra_tensors``): the lowest frequency has the whole factor.
    """
    kind = model.field("rope.scaling.type") or "linear"  # as in llama.cpp: without a factor, this is no scaling
    factor = float(model.field("rope.scaling.factor") or model.field("rope.scale_linear") or 0) or 1.0
    if model.long_factors or kind == "longrope":
        raise _Unsupported("llama.cpp chooses RoPE's factors by the size of its context (longrope)")
    if kind == "none" or (kind == "linear" and factor == 1.0):
        kind, factor = "default", 1.0
    freqs = model.rope_freqs
    if freqs is None:
        return kind, factor
    if kind != "default" or not (freqs.size and freqs[0] == 1 and (np.diff(freqs) >= 0).all() and freqs[-1] > 1):
        raise _Unsupported("the file has factors for RoPE that are not those of llama3")
    return "llama3", float(freqs[-1])
