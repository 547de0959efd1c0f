"""A device with fewer bits per weight than the cloud: the same model file, quantised by llama.cpp."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING

from pdd_cli.cache import published
from pdd_core.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path

KINDS = ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0")
"""Types of weights, by llama.cpp's names."""


def quantised_gguf(source: Path, kind: str, folder: Path) -> Path:
    """Return `source` with weights of `kind`, made in `folder` unless it is there.

    Raises:
        ModelError: llama.cpp cannot make it.
    """
    import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

    target = folder / f"device-{kind}.gguf"
    if target.exists():
        return target
    params = L.llama_model_quantize_default_params()
    params.ftype = getattr(L, f"LLAMA_FTYPE_MOSTLY_{kind}")
    with published(target) as draft:
        if L.llama_model_quantize(str(source).encode(), str(draft).encode(), ctypes.byref(params)):
            raise ModelError(f"llama.cpp cannot make {kind} of {source}")
    return target
