"""The devices that this build of llama.cpp can compute on, by ggml's registry of backends."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pdd_llamacpp_adapter.engine.libggml import installed_ggml

_CPU = "CPU"
_GPU, _INTEGRATED = 1, 2
"""``enum ggml_backend_dev_type``."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """A device that takes layers of a model."""

    name: str
    """By which llama.cpp knows it: ``CUDA0``, ``Metal``, ``Vulkan0``."""
    description: str
    backend: str
    """``CUDA``, ``Metal``, ``Vulkan``, ``ROCm``."""
    free: int
    """Bytes of its memory that are free now."""
    total: int
    handle: int = 0
    """``ggml_backend_dev_t``."""
    integrated: bool = False
    """Whether it shares the host's memory. Without being named, it is used only where there is no other."""


@dataclass(frozen=True, slots=True)
class Backends:
    """What a build can do on this machine."""

    offloads: bool
    """Whether the build can put layers on a GPU, be there one or not."""
    gpus: tuple[Gpu, ...]
    mlock: bool
    host_free: int | None
    """Bytes of the host's memory that can be had now, swap included; None where nobody tells."""

    @property
    def name(self) -> str:
        """The backends that compute, for people."""
        return ", ".join(dict.fromkeys(gpu.backend for gpu in self.gpus)) or _CPU


def installed_backends() -> Backends:
    """Return those of the installed llama.cpp."""
    import llama_cpp.llama_cpp as L  # noqa: N812 - the usual short name of the C functions

    return found_backends(L, installed_ggml())


def found_backends(llama: Any, ggml: Any) -> Backends:
    """Return what the library `ggml` registers, and `llama` supports."""
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    declare(ggml.ggml_backend_dev_get, [ctypes.c_size_t], pointer)
    declare(ggml.ggml_backend_dev_count, [], ctypes.c_size_t)
    declare(ggml.ggml_backend_dev_type, [pointer], ctypes.c_int)
    declare(ggml.ggml_backend_dev_name, [pointer], text)
    declare(ggml.ggml_backend_dev_description, [pointer], text)
    declare(ggml.ggml_backend_dev_memory, [pointer, pointer, pointer], None)
    declare(ggml.ggml_backend_dev_backend_reg, [pointer], pointer)
    declare(ggml.ggml_backend_reg_name, [pointer], text)
    found = [ggml.ggml_backend_dev_get(index) for index in range(ggml.ggml_backend_dev_count())]
    return Backends(
        offloads=bool(llama.llama_supports_gpu_offload()),
        gpus=tuple(_gpu(ggml, one) for one in found if ggml.ggml_backend_dev_type(one) in (_GPU, _INTEGRATED)),
        mlock=bool(llama.llama_supports_mlock()),
        host_free=host_free(),
    )


def declare(function: Any, arguments: list[Any], result: Any) -> None:
    """Tell ctypes what a C function takes and returns."""
    function.argtypes, function.restype = arguments, result


def _gpu(ggml: Any, handle: int) -> Gpu:
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    ggml.ggml_backend_dev_memory(handle, ctypes.byref(free), ctypes.byref(total))
    name, description, backend = (
        text.decode("utf-8", "replace")
        for text in (
            ggml.ggml_backend_dev_name(handle),
            ggml.ggml_backend_dev_description(handle),
            ggml.ggml_backend_reg_name(ggml.ggml_backend_dev_backend_reg(handle)),
        )
    )
    integrated = ggml.ggml_backend_dev_type(handle) == _INTEGRATED
    return Gpu(name, description, backend, free.value, total.value, handle, integrated)


def host_free(proc: Path = Path("/proc/meminfo"), group: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return the bytes of memory and swap that can be had, within what a container may have; None if unknown."""
    try:
        fields = dict(line.split(":", 1) for line in proc.read_text().splitlines() if ":" in line)
        free = sum(int(fields[name].split()[0]) * 1024 for name in ("MemAvailable", "SwapFree"))
    except (OSError, KeyError, ValueError, IndexError):
        try:  # other systems than Linux
            return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (AttributeError, OSError, ValueError):
            return None
    try:
        used = int((group / "memory.current").read_text())
        # pages of files can be dropped
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        limit = int((group / "memory.max").read_text())
        return min(free, limit - used + int(stat.get("inactive_file", 0)) + int(stat.get("active_file", 0)))
    except (OSError, ValueError):  # no limit, or no such system
        return free
