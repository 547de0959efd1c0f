"""ggml's C functions, in whichever of its libraries they are."""

from __future__ import annotations

import functools
import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class Ggml:
    """Has each function of the first library that has it.

    Elsewhere a library answers for those that it needs, too. On Windows it has its own functions alone.
    """

    def __init__(self, libraries: Iterable[Any]) -> None:
        self._libraries = tuple(libraries)

    def __getattr__(self, name: str) -> Any:
        for library in self._libraries:
            if (function := getattr(library, name, None)) is not None:
                return function
        raise AttributeError(f"ggml has no function {name}")


@functools.cache
def installed_ggml() -> Ggml:
    """Return that of the installed llama.cpp."""
    from llama_cpp._ctypes_extensions import load_shared_library
    from llama_cpp._ggml import libggml, libggml_base_path

    others = ("ggml-base", "ggml-cpu") if os.name == "nt" else ()
    return Ggml([libggml, *(load_shared_library(name, libggml_base_path) for name in others)])
