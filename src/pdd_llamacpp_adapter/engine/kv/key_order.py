"""How the elements of a key lie in a head: as in vLLM, or as llama.cpp's converter left them.

RoPE turns elements in pairs. Hugging Face pairs element i with i + d/2 (llama.cpp's ``LLAMA_ROPE_TYPE_NEOX``). For
some architectures, llama.cpp pairs 2i with 2i + 1 (``LLAMA_ROPE_TYPE_NORM``): its converter reorders the rows of
these models' key weights (conversion/llama.py, ``permute``), and hence the keys.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping


class KeyOrder(StrEnum):
    """Which elements of a key are turned together."""

    HALVES = "halves"
    """i and i + d/2."""
    PAIRS = "pairs"
    """2i and 2i + 1."""


_PAIRS = ("arcee", "granite", "granitemoe", "internlm2", "llama", "mistral3", "smollm3")
_HALVES = (
    "exaone", "gemma", "gemma2", "gemma3", "hunyuan-dense", "nemotron", "olmo2", "olmoe", "phi2", "phi3", "phimoe",
    "qwen2", "qwen2moe", "qwen3", "qwen3moe", "seed_oss", "stablelm", "starcoder2",
)  # fmt: skip
KEY_ORDER: Mapping[str, KeyOrder] = MappingProxyType(
    dict.fromkeys(_PAIRS, KeyOrder.PAIRS) | dict.fromkeys(_HALVES, KeyOrder.HALVES)
)
"""By ``general.architecture``, of models that Hugging Face pairs by halves.

Read in llama.cpp's ``llama_model_rope_type`` and in its converter. An architecture that is not here is not handed
over: its own converter may do more to the keys.
"""


def in_pairs(keys: np.ndarray) -> np.ndarray:
    """Reorder the last axis from `KeyOrder.HALVES` to `KeyOrder.PAIRS`; a copy."""
    pairs = keys.reshape(*keys.shape[:-1], 2, -1).swapaxes(-1, -2)
    return np.ascontiguousarray(pairs).reshape(keys.shape)


def in_halves(keys: np.ndarray) -> np.ndarray:
    """Undo `in_pairs`; a copy."""
    halves = keys.reshape(*keys.shape[:-1], -1, 2).swapaxes(-1, -2)
    return np.ascontiguousarray(halves).reshape(keys.shape)
