"""The sampling parameters in a GGUF's metadata, as llama.cpp's own programs take them."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

from pdd_core.sampling_defaults import DefaultSamplingParams

if TYPE_CHECKING:
    from pdd_llamacpp_adapter.engine.shared_model import SharedModel

_KEYS = {
    "temperature": L.LLAMA_MODEL_META_KEY_SAMPLING_TEMP,
    "top_p": L.LLAMA_MODEL_META_KEY_SAMPLING_TOP_P,
    "top_k": L.LLAMA_MODEL_META_KEY_SAMPLING_TOP_K,
    "min_p": L.LLAMA_MODEL_META_KEY_SAMPLING_MIN_P,
    "repetition_penalty": L.LLAMA_MODEL_META_KEY_SAMPLING_PENALTY_REPEAT,
}
"""``common_init_sampler_from_model`` reads these, and others that have no counterpart in vLLM."""
_BYTES = 64


def sampling_defaults(model: SharedModel) -> DefaultSamplingParams:
    """Return the file's ``general.sampling.*``, by vLLM's names."""
    with model as handle:
        found = {name: _value(handle, L.llama_model_meta_key_str(key)) for name, key in _KEYS.items()}
    return DefaultSamplingParams.of(
        {name: value for name, value in found.items() if value is not None}, source="the model file"
    )


def _value(handle: object, key: bytes | None) -> str | None:
    """Return a value of the metadata as llama.cpp writes it; None where there is none."""
    buffer = ctypes.create_string_buffer(_BYTES)
    if key is None or L.llama_model_meta_val_str(handle, key, buffer, _BYTES) < 0:
        return None
    return buffer.value.decode("utf-8", "replace")
