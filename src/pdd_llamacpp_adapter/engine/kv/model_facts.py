"""Asks llama.cpp what a loaded model's cells look like."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

from pdd_llamacpp_adapter.engine.kv.ggml import rope_tensors
from pdd_llamacpp_adapter.engine.kv.kv_support import ModelFacts

if TYPE_CHECKING:
    from pathlib import Path

_LONGEST = 256
"""Bytes of a field that are read: a number or a name is shorter."""


def model_facts(model: Any, path: Path) -> ModelFacts:
    """Return what llama.cpp says of `model`, which it loaded from `path`."""
    freqs, long_factors = rope_tensors(path)
    return ModelFacts(
        metadata=_metadata(model),
        num_layers=int(L.llama_model_n_layer(model)),
        num_heads=int(L.llama_model_n_head(model)),
        num_kv_heads=int(L.llama_model_n_head_kv(model)),
        embedding=int(L.llama_model_n_embd(model)),
        window=int(L.llama_model_n_swa(model)),
        recurrent=bool(L.llama_model_is_recurrent(model) or L.llama_model_is_hybrid(model)),
        rope_type=int(L.llama_model_rope_type(model)),
        rope_freqs=freqs,
        long_factors=long_factors,
    )


def _metadata(model: Any) -> dict[str, str]:
    """Return the file's fields, cut to `_LONGEST`; arrays are not among them."""
    key, value = ctypes.create_string_buffer(_LONGEST), ctypes.create_string_buffer(_LONGEST)
    found: dict[str, str] = {}
    for index in range(L.llama_model_meta_count(model)):
        L.llama_model_meta_key_by_index(model, index, key, len(key))
        L.llama_model_meta_val_str_by_index(model, index, value, len(value))
        found[key.value.decode("utf-8", "replace")] = value.value.decode("utf-8", "replace")
    return found
