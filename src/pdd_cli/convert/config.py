"""The cloud's configuration, of what GGUF's metadata says. What it cannot hold is refused by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pdd_cli.convert.gguf_file import GgufFile

_FIELDS = {
    "context_length": "max_position_embeddings",
    "embedding_length": "hidden_size",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.key_length": "head_dim",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "rope.freq_base": "rope_theta",
}
"""Key of GGUF, without its architecture -> field of transformers' configuration."""
_SAME_AS_HEAD = ("attention.value_length", "rope.dimension_count")
"""Keys that neither side's models of these architectures have apart from the width of a head."""
_SILENT = ("vocab_size", "tensor_data_layout", "rope.scaling.finetuned")
"""Keys that say nothing about the arithmetic."""
_BIASES = {
    "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
}
"""Field of a llama's configuration -> tensors of each layer that then have a bias."""
ROPE_FREQS = "rope_freqs.weight"
LLAMA3_ROPE = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


@dataclass(frozen=True, slots=True)
class Architecture:
    """How a ``general.architecture`` is served."""

    model_type: str
    """transformers' name."""
    fields: Mapping[str, tuple[str, Any]] = field(default_factory=dict)
    """More keys -> field of the configuration, and llama.cpp's default; ``...``: the key must be there."""
    permuted: bool = False
    """Whether the rows of q and k stand in the order that llama.cpp's rotation takes."""
    norms_from_one: bool = False
    """Whether norms are stored one higher than transformers has them."""
    optional_biases: bool = False
    """Whether layers may have biases, which the configuration then says."""
    narrow_scale: int | None = None
    """Layers of the one size that scales attention by a head's share in the width, not by a head's own width."""


ARCHITECTURES = {
    "llama": Architecture("llama", permuted=True, optional_biases=True),
    "qwen2": Architecture("qwen2"),
    "qwen3": Architecture("qwen3"),
    "gemma2": Architecture(
        "gemma2",
        {
            "attention.sliding_window": ("sliding_window", 4096),
            "attn_logit_softcapping": ("attn_logit_softcapping", 50.0),
            "final_logit_softcapping": ("final_logit_softcapping", 30.0),
        },
        norms_from_one=True,
        narrow_scale=46,
    ),
    "gemma3": Architecture(
        "gemma3_text",
        {
            "attention.sliding_window": ("sliding_window", ...),
            "rope.freq_base_swa": ("rope_local_base_freq", 10_000.0),
            "final_logit_softcapping": ("final_logit_softcapping", None),
        },
        norms_from_one=True,
        narrow_scale=62,
    ),
}


def architecture_of(file: GgufFile) -> Architecture:
    """Return how the model of `file` is served.

    Raises:
        ModelError: nobody has compared the two sides' models of its architecture.
    """
    name = file.metadata.get("general.architecture")
    if name not in ARCHITECTURES:
        raise ModelError(f"its architecture is {name}, not one of {', '.join(ARCHITECTURES)}")
    return ARCHITECTURES[name]


def config_fields(file: GgufFile) -> dict[str, Any]:
    """Return the fields of transformers' configuration that `file` settles.

    Raises:
        ModelError: the file says what such a configuration cannot; names the key or the tensor.
    """
    architecture = architecture_of(file)
    keys = _keys(file)
    wanted = {**{key: (name, ...) for key, name in _FIELDS.items()}, **architecture.fields}
    fields = {name: _taken(keys, key, default) for key, (name, default) in wanted.items()}
    head = fields["head_dim"]
    for key in _SAME_AS_HEAD:
        if keys.pop(key, head) != head:
            raise ModelError(f"{key} is not {head}, the width of a head")
    if architecture.norms_from_one:
        narrow = fields["num_hidden_layers"] == architecture.narrow_scale
        width = fields["hidden_size"] // fields["num_attention_heads"]
        fields["query_pre_attn_scalar"] = width if narrow else head
    if scaling := _rope_scaling(keys, file, head, fields["rope_theta"]):
        fields["rope_scaling"] = scaling
    if architecture.optional_biases:
        fields |= {name: _has_bias(file, tensors) for name, tensors in _BIASES.items()}
    if architecture.model_type == "qwen2" and head * fields["num_attention_heads"] != fields["hidden_size"]:
        raise ModelError(f"attention.key_length is {head}, and no Qwen2 has such heads")
    for key, value in keys.items():
        plain = value is True if key == "attention.causal" else not value
        if not plain and key not in _SILENT:
            raise ModelError(f"its key {key} = {value} has no place in the cloud's configuration")
    tokens = file.metadata.get("tokenizer.ggml.tokens")
    if not tokens:
        raise ModelError("it has no vocabulary")
    return fields | {"vocab_size": len(tokens), "tie_word_embeddings": "output.weight" not in file.tensors}


def _keys(file: GgufFile) -> dict[str, Any]:
    """The architecture's keys, with llama.cpp's defaults."""
    prefix = f"{file.metadata['general.architecture']}."
    keys = {key.removeprefix(prefix): value for key, value in file.metadata.items() if key.startswith(prefix)}
    heads = keys.get("attention.head_count")
    if isinstance(heads, int) and heads:
        keys.setdefault("attention.head_count_kv", heads)
        keys.setdefault("attention.key_length", keys.get("embedding_length", 0) // heads)
    keys.setdefault("rope.freq_base", 10_000.0)
    return keys


def _taken(keys: dict[str, Any], key: str, default: Any) -> Any:
    value = keys.pop(key, default)
    if value is ...:
        raise ModelError(f"its key {key} is missing")
    if isinstance(value, list):
        raise ModelError(f"its key {key} differs from layer to layer")
    return value


def _rope_scaling(keys: dict[str, Any], file: GgufFile, head: int, base: float) -> dict[str, Any] | None:
    """How positions are scaled, by the keys or by the divisors of the frequencies that the file has."""
    factor = keys.pop("rope.scaling.factor", 0.0)
    kind = keys.pop("rope.scaling.type", "linear" if factor else "none")
    original = keys.pop("rope.scaling.original_context_length", None)
    if kind == "none" or (kind == "linear" and factor in (0.0, 1.0)):
        return (
            _llama3_scaling(file.tensors[ROPE_FREQS].values(), head, base) if ROPE_FREQS in file.tensors else None
        )
    if ROPE_FREQS in file.tensors:
        raise ModelError(f"its tensor {ROPE_FREQS} scales positions that rope.scaling.type = {kind} scales too")
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor}
    if kind == "yarn" and factor and original:
        return {"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
    raise ModelError(f"its rope.scaling.type is {kind}, by {factor:g}, which the cloud would do otherwise")


def _llama3_scaling(divisors: np.ndarray, head: int, base: float) -> dict[str, Any]:
    """Llama 3's scaling, if it divides the frequencies of a head by `divisors`."""
    scaling = {"rope_type": "llama3", "factor": round(float(divisors.max()), 3), **LLAMA3_ROPE}
    if divisors.shape != (head // 2,) or not np.allclose(
        divisors, _llama3_divisors(head, base, scaling), rtol=1e-4
    ):
        raise ModelError(f"its tensor {ROPE_FREQS} scales positions otherwise than Llama 3 does")
    return scaling


def _llama3_divisors(head: int, base: float, scaling: Mapping[str, Any]) -> np.ndarray:
    """What `rope_type` llama3 divides each frequency by (transformers' ``_compute_llama3_parameters``)."""
    wavelengths = 2 * np.pi * base ** (np.arange(0, head, 2) / head)
    low, high, factor = scaling["low_freq_factor"], scaling["high_freq_factor"], scaling["factor"]
    turns = scaling["original_max_position_embeddings"] / wavelengths
    # of wavelengths in between, some of the scaled and some of the plain frequency
    plain = np.clip((turns - low) / (high - low), 0, 1)
    divisors: np.ndarray = 1 / ((1 - plain) / factor + plain)
    return divisors


def _has_bias(file: GgufFile, tensors: tuple[str, ...]) -> bool:
    return any(name.endswith(tuple(f".{tensor}.bias" for tensor in tensors)) for name in file.tensors)
