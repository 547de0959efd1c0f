"""The cloud's model, every parameter of it filled from the file, and every tensor of the file used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_cli.convert.config import ROPE_FREQS, architecture_of, config_fields
from pdd_core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pdd_cli.convert.gguf_file import GgufFile

_SOME = 4
"""Names in an error message; a file that lacks one layer lacks a dozen tensors."""


def cloud_model(file: GgufFile) -> Any:
    """Return transformers' model of `file`, in float32.

    Raises:
        ModelError: a tensor of the file would not be used, or a parameter would not be filled; names it.
    """
    import torch
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    config = AutoConfig.for_model(architecture_of(file).model_type, **config_fields(file))
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    with torch.device("meta"):
        shapes = {name: tuple(tensor.shape) for name, tensor in model_class(config).state_dict().items()}
    weights = {name: torch.from_numpy(values) for name, values in _weights(file, config, shapes).items()}
    model, info = model_class.from_pretrained(
        None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
    )
    if wrong := {kind: names for kind, names in info.items() if names}:
        raise ModelError(f"transformers does not take these weights: {wrong}")
    return model


def _weights(file: GgufFile, config: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """The value of each parameter; those of a tied head are the embedding's."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    name = file.metadata["general.architecture"]
    arch = next(arch for arch, called in MODEL_ARCH_NAMES.items() if called == name)
    names = get_tensor_name_map(arch, config.num_hidden_layers)
    left = dict.fromkeys(file.tensors)
    left.pop(ROPE_FREQS, None)  # the configuration holds what it says
    filled: dict[str, np.ndarray] = {}
    missing: list[str] = []
    for parameter, shape in shapes.items():
        module, _, kind = parameter.rpartition(".")
        if module == "lm_head" and config.tie_word_embeddings:
            continue
        tensor = f"{names.get_name(module)}.{kind}"
        if tensor in left:
            del left[tensor]
            filled[parameter] = _in_clouds_form(file, tensor, config)
            if filled[parameter].shape != shape:
                raise ModelError(f"its tensor {tensor} has the shape {filled[parameter].shape}, not {shape}")
        elif kind == "bias" and architecture_of(file).optional_biases:
            filled[parameter] = np.zeros(shape, np.float32)
        else:
            missing.append(f"{tensor} ({parameter})")
    if left:
        raise ModelError(f"the cloud's model has no place for {_listed(left)}")
    if missing:
        raise ModelError(f"it lacks {_listed(missing)}, which the cloud's model has")
    return filled


def _in_clouds_form(file: GgufFile, tensor: str, config: Any) -> np.ndarray:
    values, architecture = file.tensors[tensor].values(), architecture_of(file)
    if architecture.norms_from_one and tensor.endswith("norm.weight"):
        return values - 1
    if architecture.permuted and ".attn_q." in tensor:
        return _halves(values, config.num_attention_heads)
    if architecture.permuted and ".attn_k." in tensor:
        return _halves(values, config.num_key_value_heads)
    return values


def _halves(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head in two halves, as transformers rotates them; llama.cpp rotates neighbours."""
    pairs = values.reshape(heads, -1, 2, *values.shape[1:])
    return np.ascontiguousarray(pairs.swapaxes(1, 2).reshape(values.shape))


def _listed(names: Mapping[str, Any] | list[str]) -> str:
    some = ", ".join(list(names)[:_SOME])
    return some if len(names) <= _SOME else f"{some} and {len(names) - _SOME} more"
