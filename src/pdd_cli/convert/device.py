"""The device's form of a model: one F16 GGUF, made and loaded once by llama.cpp."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from pdd_core.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

_LLAMA_FTYPE_MOSTLY_F16 = 1
_GGML_LOG_LEVEL_ERROR = 4


def to_device_file(source: Path, target: Path) -> None:
    """Write an F16 GGUF: the weights of `source` and of its other parts, dequantised (``llama_model_quantize``).

    F16 holds every value of a 4- or 8-bit block closely enough that greedy answers equal those of float32.

    Raises:
        ModelError: llama.cpp refuses the file, or does not load what it made of it.
    """
    from llama_cpp import llama_cpp as lib

    errors: list[str] = []

    def on_log(level: int, text: bytes, _data: object) -> None:
        if level == _GGML_LOG_LEVEL_ERROR:
            errors.append(text.decode(errors="replace").strip().partition(": ")[2])  # without the function's name

    callback = lib.llama_log_callback(on_log)
    lib.llama_log_set(callback, ctypes.c_void_p(0))
    try:
        params = lib.llama_model_quantize_default_params()
        params.ftype = _LLAMA_FTYPE_MOSTLY_F16
        params.allow_requantize = True
        code = lib.llama_model_quantize(bytes(source), bytes(target), ctypes.byref(params))
        if code or not target.is_file():
            raise ModelError(_first(errors) or f"llama.cpp gave code {code}")
        # quantising reads neither the vocabulary nor the names of the tensors
        model = lib.llama_model_load_from_file(bytes(target), lib.llama_model_default_params())
        if not model:
            raise ModelError(_first(errors) or "llama.cpp does not load it")
        lib.llama_model_free(model)
    finally:
        lib.llama_log_set(lib.llama_log_callback(), ctypes.c_void_p(0))  # ours does not outlive this call


def _first(errors: list[str]) -> str:
    """The reason; the lines behind it only say what came of it."""
    return next(filter(None, errors), "")
