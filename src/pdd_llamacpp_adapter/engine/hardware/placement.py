"""Where a model goes: which layers on which GPU, and whether all of it fits, decided before a weight is read.

What a build cannot obey is refused by name here. llama.cpp itself would compute on the CPU without a word, or end
the process once memory runs out in the middle of an answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError, DeviceEngineFailed

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pdd_core.llama_params import LlamaParams
    from pdd_llamacpp_adapter.engine.hardware.backends import Backends, Gpu
    from pdd_llamacpp_adapter.engine.hardware.model_size import ModelSize

MARGIN = 2**29
"""Bytes of each GPU that are left free: for its driver, and what llama.cpp allocates while it computes."""
ALL = -1
"""llama.cpp's word for all layers."""
BUILD = "build llama-cpp-python for your GPU (docs/hardware.md)"


@dataclass(frozen=True, slots=True)
class Placement:
    """Where one model goes."""

    backend: str
    gpus: tuple[Gpu, ...]
    """Those that get layers; none: the CPU has all."""
    gpu_layers: int
    """As llama.cpp counts: the output is one, and the first to go."""
    layers: int
    """Of the model, the output included; 0 where its file does not tell."""
    gpu_need: int = 0
    """Bytes on all GPUs together, about."""
    host_need: int = 0
    """Bytes of the host's memory, about; a mapped file's weights included."""
    host_free: int | None = None
    advice: str = ""
    """What to do about memory that may not suffice."""

    @property
    def gpu_free(self) -> int:
        """Bytes that are free on all GPUs together."""
        return sum(gpu.free for gpu in self.gpus)

    def lines(self) -> Iterator[str]:
        """Yield what users should know, a line each."""
        offloaded = f"{self.gpu_layers} of {self.layers} layers" if self.layers else "all layers"
        if self.gpus:
            names = ", ".join(f"{gpu.name} ({gpu.description})" for gpu in self.gpus)
            yield f"llama.cpp computes on {self.backend}: {offloaded} on {names}"
            yield f"GPU memory: about {gigabytes(self.gpu_need)} needed, {gigabytes(self.gpu_free)} free"
        else:
            others = "" if self.backend == "CPU" else f"; no layers on a GPU ({self.backend})"
            yield f"llama.cpp computes on the CPU{others}"
        if self.host_need:
            free = "" if self.host_free is None else f", {gigabytes(self.host_free)} free"
            yield f"memory: about {gigabytes(self.host_need)} needed{free}"


def gigabytes(count: int) -> str:
    """Return a number of bytes in GB."""
    return f"{count / 1e9:.2f} GB"


def placed(params: LlamaParams, backends: Backends, size: ModelSize | None, *, outputs: int) -> Placement:
    """Return where a model of `size` goes; `outputs` is how many tokens of a batch have logits.

    Raises:
        ConfigurationError: a setting that this build, or this machine's devices, cannot obey.
        DeviceEngineFailed: it does not fit.
    """
    gpus = _chosen(params, backends)
    if params.mlock and not backends.mlock:
        raise ConfigurationError("mlock cannot be had with this build of llama.cpp: leave it out")
    if size is None:
        wanted = {"auto": ALL, "all": ALL}.get(str(params.gpu_layers), params.gpu_layers)
        return Placement(backends.name, gpus, int(wanted) if gpus else 0, 0)
    fitting = _Fitting(params, size, gpus, outputs)
    count = fitting.count()
    used = gpus if count else ()
    placement = Placement(
        backend=backends.name,
        gpus=used,
        gpu_layers=count,
        layers=len(size.layers) + 1,
        gpu_need=fitting.need(count) if used else 0,
        host_need=fitting.host_need(count),
        host_free=backends.host_free,
        advice=fitting.advice(count, backends.host_free),
    )
    least = fitting.host_least(count)
    if backends.host_free is not None and least > backends.host_free:
        raise DeviceEngineFailed(
            f"the model and a context of {params.cells} tokens need {gigabytes(least)} of memory, and "
            f"{gigabytes(backends.host_free)} are free: {_LESS}"
        )
    return placement


_LESS = "less n_ctx or parallel needs less, so does cache_type_k = q8_0, or a smaller quantisation of the model"


def _chosen(params: LlamaParams, backends: Backends) -> tuple[Gpu, ...]:
    """Return the GPUs to use, after the settings that are about them have been checked."""
    names, there = params.device_names, {gpu.name: gpu for gpu in backends.gpus}
    asks = {
        "gpu_layers": params.gpu_layers not in ("auto", 0),
        "device": bool(names),
        "main_gpu": params.main_gpu > 0,
        "split_mode": params.split_mode in ("row", "tensor"),
        "tensor_split": bool(params.shares),
    }
    if not there and (asked := next((name for name, is_asked in asks.items() if is_asked), None)):
        why = "finds no GPU on this machine" if backends.offloads else "computes on the CPU alone"
        fix = "leave it out" if backends.offloads else f"{BUILD}, or leave it out"
        raise ConfigurationError(f"{asked} is {getattr(params, asked)}, but this build of llama.cpp {why}: {fix}")
    for name in names or ():
        if name not in there:
            raise ConfigurationError(f"device {name} does not exist: llama.cpp has {', '.join(there)}")
    discrete = tuple(gpu for gpu in backends.gpus if not gpu.integrated)
    gpus = (discrete or backends.gpus) if names is None else tuple(there[name] for name in names)
    if params.gpu_layers == 0 or not gpus:
        return ()
    if params.main_gpu >= len(gpus):
        raise ConfigurationError(f"main_gpu is {params.main_gpu}, but there are {len(gpus)} GPUs, counted from 0")
    if len(params.shares) > len(gpus):
        raise ConfigurationError(f"tensor_split has {len(params.shares)} shares for {len(gpus)} GPUs")
    return (gpus[params.main_gpu],) if params.split_mode == "none" else gpus


@dataclass(frozen=True, slots=True)
class _Fitting:
    """How much fits where."""

    params: LlamaParams
    size: ModelSize
    gpus: tuple[Gpu, ...]
    outputs: int

    def _on_gpu(self, count: int) -> range:
        """Return the numbers of the layers that go with `count`: the output goes first, then the last layer."""
        layers = len(self.size.layers)
        return range(max(0, layers + 1 - count), layers)

    def _held(self, count: int) -> int:
        """Return the bytes of the weights and cells that go with `count`."""
        if not count:
            return 0
        size = self.size
        return size.output + sum(size.layers[at] + size.cells(at, self.params) for at in self._on_gpu(count))

    def need(self, count: int) -> int:
        """Return about how many bytes the GPUs need, computing included."""
        return self._held(count) + len(self.gpus) * self.size.computing(self.params, self.outputs)

    def count(self) -> int:
        """Return how many layers go.

        Raises:
            DeviceEngineFailed: the number that is asked for does not fit.
        """
        most, asked = len(self.size.layers) + 1, self.params.gpu_layers
        if not self.gpus:
            return 0
        room = sum(max(0, gpu.free - MARGIN) for gpu in self.gpus)
        fitting = max((count for count in range(most + 1) if self.need(count) <= room), default=0)
        if asked == "auto":
            return fitting
        count = most if asked == "all" else min(int(asked), most)
        if self._held(count) > sum(gpu.free for gpu in self.gpus):
            held, free = gigabytes(self._held(count)), gigabytes(sum(gpu.free for gpu in self.gpus))
            raise DeviceEngineFailed(
                f"gpu_layers is {asked}: weights and KV cache of {count} layers need {held}, and {free} are free "
                f"on the GPU: {fitting} layers fit, which gpu_layers = auto takes; {_LESS}"
            )
        return count

    def _on_host(self, count: int) -> tuple[int, int]:
        """Return the bytes of the weights and of the cells that stay with the CPU."""
        gone, size = self._on_gpu(count), self.size
        stay = [layer for layer in range(len(size.layers)) if layer not in gone]
        output = 0 if count or self._is_tied else size.output
        weights = size.input + output + sum(size.layers[at] for at in stay)
        return weights, sum(size.cells(at, self.params) for at in stay)

    @property
    def _is_tied(self) -> bool:
        """Whether the output's weights are the embeddings, which the CPU has once."""
        return (
            self.size.output >= self.size.input > 0 and self.size.output - self.size.input < self.size.input // 8
        )

    def host_need(self, count: int) -> int:
        """Return about how many bytes of the host's memory are needed."""
        return sum(self._on_host(count)) + self.size.computing(self.params, self.outputs)

    def host_least(self, count: int) -> int:
        """Return the bytes without which it certainly does not work: a mapped file's pages can be dropped."""
        weights, cells = self._on_host(count)
        return cells + (0 if self.params.mmap and not self.params.mlock else weights)

    def advice(self, count: int, host_free: int | None) -> str:
        """Return what to do where memory is short, though it may suffice."""
        if count and self.need(count) > sum(max(0, gpu.free - MARGIN) for gpu in self.gpus):
            return f"GPU memory may run out while it computes: gpu_layers = auto takes what fits; {_LESS}"
        if host_free is not None and self.host_need(count) > host_free:
            return f"memory may run out, or the model is read from the disk again and again: {_LESS}"
        return ""
