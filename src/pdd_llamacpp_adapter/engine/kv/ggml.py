"""ggml's own packing of cells, faster than numpy's and the same bits; and tensors of a GGUF file."""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from pdd_core.kv.cell_types import CellType
from pdd_llamacpp_adapter.engine.kv.sequence_state import GGML_TYPES
from pdd_llamacpp_adapter.engine.libggml import installed_ggml

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

_F32 = 0


class _GgufInitParams(ctypes.Structure):
    """``struct gguf_init_params`` (gguf.h)."""

    _fields_ = (("no_alloc", ctypes.c_bool), ("ctx", ctypes.c_void_p))


libggml = installed_ggml()
_POINTER, _LONG, _SIZE = ctypes.c_void_p, ctypes.c_int64, ctypes.c_size_t
_to_half, _quantize = libggml.ggml_cpu_fp32_to_fp16, libggml.ggml_quantize_chunk
_to_half.argtypes, _to_half.restype = [_POINTER, _POINTER, _LONG], None
_quantize.argtypes, _quantize.restype = [ctypes.c_int, _POINTER, _POINTER, _LONG, _LONG, _LONG, _POINTER], _SIZE
_open, _close = libggml.gguf_init_from_file, libggml.gguf_free
_open.argtypes, _open.restype = [ctypes.c_char_p, _GgufInitParams], _POINTER
_close.argtypes, _close.restype = [_POINTER], None
_find, _type = libggml.gguf_find_tensor, libggml.gguf_get_tensor_type
_find.argtypes, _find.restype = [_POINTER, ctypes.c_char_p], _LONG
_type.argtypes, _type.restype = [_POINTER, _LONG], ctypes.c_int
_size, _offset, _data = (
    libggml.gguf_get_tensor_size,
    libggml.gguf_get_tensor_offset,
    libggml.gguf_get_data_offset,
)
_size.argtypes, _size.restype = [_POINTER, _LONG], _SIZE
_offset.argtypes, _offset.restype = [_POINTER, _LONG], _SIZE
_data.argtypes, _data.restype = [_POINTER], _SIZE


def pack(values: np.ndarray, kind: CellType) -> np.ndarray:
    """Do as `pdd_core.kv.cell_types.pack`: float32 of shape (..., elements) to uint8 of shape (..., bytes)."""
    source = np.ascontiguousarray(values, dtype=np.float32)
    packed: np.ndarray = np.empty((*source.shape[:-1], kind.row_bytes(source.shape[-1])), dtype=np.uint8)
    if kind is CellType.F16:
        _to_half(source.ctypes.data, packed.ctypes.data, source.size)
    else:
        rows = source.size // source.shape[-1]
        _quantize(GGML_TYPES[kind], source.ctypes.data, packed.ctypes.data, 0, rows, source.shape[-1], None)
    return packed


@contextmanager
def opened(path: Path) -> Iterator[int | None]:
    """Open the tables of a GGUF file, without its tensors; None where it is none."""
    file = _open(str(path).encode(), _GgufInitParams(no_alloc=True, ctx=None)) or None
    try:
        yield file
    finally:
        if file is not None:
            _close(file)


def rope_tensors(path: Path) -> tuple[np.ndarray | None, bool]:
    """Return ``rope_freqs.weight``, float32, or None, and whether a file has factors for long texts.

    No function of llama.cpp tells.
    """
    with opened(path) as file:
        if file is None:  # llama.cpp has loaded it: it was replaced since
            return None, True
        long_factors = _find(file, b"rope_factors_long.weight") >= 0
        index = _find(file, b"rope_freqs.weight")
        if index < 0:
            return None, long_factors
        if _type(file, index) != _F32:
            return np.zeros(0, dtype=np.float32), long_factors
        begin, size = _data(file) + _offset(file, index), _size(file, index)
    return np.fromfile(path, dtype="<f4", count=size // 4, offset=begin), long_factors
