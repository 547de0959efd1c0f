"""The cloud's form of a model: a folder that vLLM serves in float32, compared with the device's form."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

from pdd_cli.convert.agreement import agreement
from pdd_cli.convert.gguf_file import parts_of, read_gguf
from pdd_cli.convert.tokenizer import TEXTS, check_cuts, cloud_tokenizer
from pdd_cli.convert.weights import cloud_model
from pdd_core.llama_params import LlamaParams
from pdd_llamacpp_adapter.engine.context import LlamaContext
from pdd_llamacpp_adapter.engine.vocabulary import Vocabulary

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

_CONTEXT = 256
"""Tokens that each of the texts has at most, were every byte a token."""
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""``general.sampling.*`` -> field of transformers' generation configuration, which vLLM's defaults come from."""


def to_cloud_folder(source: Path, target: Path, device: Path) -> None:
    """Write a folder that vLLM serves: the weights of `source` as float32, its configuration and its tokenizer.

    Args:
        source: the GGUF; any part of it, if it is split.
        target: the folder to make.
        device: the device's file, made from the same.

    Raises:
        ModelError: something of the file has no place in the folder, or the two forms do not agree.
    """
    from transformers import AutoTokenizer

    file = read_gguf(parts_of(source))
    model = cloud_model(file)
    model.generation_config.update(**_generation(file.metadata))
    context = LlamaContext(device, LlamaParams.of(n_ctx=_CONTEXT, batch_size=_CONTEXT), outputs=_CONTEXT)
    try:
        vocabulary = Vocabulary(context.model)
        tokenizer = cloud_tokenizer(file.metadata, vocabulary, L.llama_model_get_vocab(context.model.handle))
        prompts = [vocabulary.tokenize(text, special=True, add_bos=True) for text in TEXTS]
        found = agreement(model, context.sequences[0], prompts)
        found.check()
        model.save_pretrained(target)
        tokenizer.save_pretrained(target)
        # as vLLM reads it: transformers makes more of some tokenizers than their file says
        check_cuts(AutoTokenizer.from_pretrained(target), vocabulary)
        found.save(target)
    finally:
        context.close()


def _generation(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Where answers end, and how they are sampled unless a request says otherwise."""
    key = "tokenizer.ggml.{}_token_id".format
    ends = [metadata[key(name)] for name in ("eos", "eot", "eom") if key(name) in metadata]
    sampling = {
        field: metadata[f"general.sampling.{name}"]
        for name, field in _SAMPLING.items()
        if f"general.sampling.{name}" in metadata
    }
    return {
        "bos_token_id": metadata.get(key("bos")),
        "pad_token_id": metadata.get(key("padding")),
        "eos_token_id": ends[0] if len(set(ends)) == 1 else list(dict.fromkeys(ends)) or None,
        **sampling,
        **({"do_sample": True} if sampling else {}),
    }
