"""How many bytes a GGUF model takes, layer by layer, by its file's own tables: no weight is read."""

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdd_llamacpp_adapter.engine.hardware.backends import declare
from pdd_llamacpp_adapter.engine.libggml import installed_ggml

if TYPE_CHECKING:
    from pathlib import Path

    from pdd_core.llama_params import LlamaParams

_LAYER = re.compile(r"blk\.(\d+)\.")
_PART = re.compile(r"-00001-of-(\d{5})\.gguf$")
_ELEMENT_BITS = {
    "f32": 32, "f16": 16, "bf16": 16, "q8_0": 8.5, "q5_1": 6, "q5_0": 5.5, "q4_1": 5, "q4_0": 4.5, "iq4_nl": 4.5,
}  # fmt: skip
"""Of a KV cache's types, scales included."""
_READABLE = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 10: 8, 11: 8}
"""Whole numbers of ``enum gguf_type``, with their bytes; odd ones are signed."""


@dataclass(frozen=True, slots=True)
class ModelSize:
    """What a model is made of."""

    layers: tuple[int, ...]
    """Bytes of each layer's weights."""
    input: int
    """Of the token embeddings, which stay with the CPU."""
    output: int
    """Of all else: the output, and embeddings again where they are the output."""
    key_size: tuple[int, ...]
    """Elements of a cell's keys, by layer; none of a layer without cells."""
    value_size: tuple[int, ...]
    num_heads: int
    embedding: int
    feed_forward: int
    vocabulary: int

    @property
    def weights(self) -> int:
        """Bytes of all weights."""
        return sum(self.layers) + self.input + self.output

    def cells(self, layer: int, params: LlamaParams) -> int:
        """Return the bytes of a layer's KV cache; at most, where the layer has a sliding window."""
        bits = self.key_size[layer] * _ELEMENT_BITS[params.cache_type_k]
        bits += self.value_size[layer] * _ELEMENT_BITS[params.cache_type_v]
        return int(params.cells * bits / 8)

    def computing(self, params: LlamaParams, outputs: int) -> int:
        """Return about how many bytes one step takes besides: activations, and attention's scores or the logits.

        For SmolLM2-135M and Qwen2.5-0.5B, 0.94 to 1.45 times what llama.cpp of 0.3.36 logs on a CPU.
        """
        rows = min(params.ubatch, params.cells)
        scores = 0 if params.flash_attn == "on" else rows * params.cells * (self.num_heads + 1)
        width = 4 * self.embedding + 2 * self.feed_forward
        return 4 * (max(scores, outputs * self.vocabulary) + rows * width)


def model_size(path: Path) -> ModelSize | None:
    """Return the sizes of the model at `path`, of all its parts; None where the file does not tell."""
    from pdd_llamacpp_adapter.engine.kv.ggml import opened

    files = _parts(path)
    try:
        with opened(files[0]) as file:
            if file is None:
                return None
            fields = _Fields(file)
            architecture = fields.text("general.architecture")
            tensors = _tensors(file)
        for part in files[1:]:
            with opened(part) as file:
                if file is None:
                    return None
                tensors += _tensors(file)
        return _size(fields.known, architecture, tensors)
    except (KeyError, ValueError, OSError):
        return None


def _size(known: dict[str, list[int]], architecture: str, tensors: list[tuple[str, int]]) -> ModelSize | None:
    def field(name: str, default: int | None = None) -> list[int]:
        found = known.get(f"{architecture}.{name}")
        return [default] if found is None and default is not None else found or []

    [count], [heads], [embedding] = (
        field("block_count"),
        field("attention.head_count")[:1],
        field("embedding_length"),
    )
    layers, rest = [0] * count, {"input": 0, "output": 0}
    for name, size in tensors:
        of_layer = _LAYER.match(name)
        if of_layer and int(of_layer[1]) < count:
            layers[int(of_layer[1])] += size
        else:
            rest["input" if name.startswith("token_embd") else "output"] += size
    if not any(name == "output.weight" for name, _ in tensors):
        rest["output"] += rest["input"]
    kv_heads = field("attention.head_count_kv", heads)
    kv_heads = kv_heads * count if len(kv_heads) == 1 else kv_heads
    [key], [value] = (field(f"attention.{name}_length", embedding // max(1, heads)) for name in ("key", "value"))
    if latent := field("attention.kv_lora_rank"):  # one vector for all heads, in the place of keys
        key, value, kv_heads = latent[0] + field("rope.dimension_count", 0)[0], 0, [1] * count
    vocabulary = known.get("tokenizer.ggml.tokens", [0])[0]
    return ModelSize(
        layers=tuple(layers),
        **rest,
        key_size=tuple(key * number for number in kv_heads[:count]),
        value_size=tuple(value * number for number in kv_heads[:count]),
        num_heads=heads,
        embedding=embedding,
        feed_forward=max(field("feed_forward_length", 4 * embedding)),
        vocabulary=vocabulary,
    )


def _parts(path: Path) -> list[Path]:
    found = _PART.search(path.name)
    if found is None:
        return [path]
    stem, count = path.name[: found.start()], int(found[1])
    return [path.with_name(f"{stem}-{number:05d}-of-{count:05d}.gguf") for number in range(1, count + 1)]


def _tensors(file: int) -> list[tuple[str, int]]:
    G = installed_ggml()  # noqa: N806 - as L
    declare(G.gguf_get_n_tensors, [ctypes.c_void_p], ctypes.c_int64)
    declare(G.gguf_get_tensor_name, [ctypes.c_void_p, ctypes.c_int64], ctypes.c_char_p)
    declare(G.gguf_get_tensor_size, [ctypes.c_void_p, ctypes.c_int64], ctypes.c_size_t)
    return [
        (G.gguf_get_tensor_name(file, index).decode("utf-8", "replace"), int(G.gguf_get_tensor_size(file, index)))
        for index in range(G.gguf_get_n_tensors(file))
    ]


class _Fields:
    """The file's whole numbers, and lists of them; of other lists, their length."""

    def __init__(self, file: int) -> None:
        self._file, self._ggml = file, installed_ggml()
        for name, result in (
            ("kv_type", ctypes.c_int), ("key", ctypes.c_char_p), ("val_str", ctypes.c_char_p),
            ("val_data", ctypes.c_void_p), ("arr_type", ctypes.c_int), ("arr_n", ctypes.c_size_t),
            ("arr_data", ctypes.c_void_p),
        ):  # fmt: skip
            declare(getattr(self._ggml, f"gguf_get_{name}"), [ctypes.c_void_p, ctypes.c_int64], result)
        declare(self._ggml.gguf_get_n_kv, [ctypes.c_void_p], ctypes.c_int64)
        declare(self._ggml.gguf_find_key, [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_int64)
        self.known = {
            self._ggml.gguf_get_key(file, index).decode("utf-8", "replace"): numbers
            for index in range(self._ggml.gguf_get_n_kv(file))
            if (numbers := self._numbers(index)) is not None
        }

    def _numbers(self, index: int) -> list[int] | None:
        kind = self._ggml.gguf_get_kv_type(self._file, index)
        if kind in _READABLE:
            return _integers(self._ggml.gguf_get_val_data(self._file, index), kind, 1)
        if kind != 9:  # an array
            return None
        kind, count = self._ggml.gguf_get_arr_type(self._file, index), self._ggml.gguf_get_arr_n(self._file, index)
        if kind not in _READABLE or count > 4096:
            return [count]
        return _integers(self._ggml.gguf_get_arr_data(self._file, index), kind, count)

    def text(self, key: str) -> str:
        index = self._ggml.gguf_find_key(self._file, key.encode())
        if index < 0 or self._ggml.gguf_get_kv_type(self._file, index) != 8:
            raise KeyError(key)
        found: bytes = self._ggml.gguf_get_val_str(self._file, index)
        return found.decode("utf-8", "replace")


def _integers(data: int, kind: int, count: int) -> list[int]:
    size = _READABLE[kind]
    raw = ctypes.string_at(data, size * count)
    signed = kind % 2 == 1
    return [int.from_bytes(raw[at : at + size], "little", signed=signed) for at in range(0, len(raw), size)]
