"""What llama.cpp can compute on here, and whether a device's model fits, before any of it is loaded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pdd_cli.doctor.findings import fail, ok, warn
from pdd_core.errors import ConfigurationError, DeviceEngineFailed

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pdd_cli.doctor.findings import Finding
    from pdd_core.llama_params import LlamaParams
    from pdd_llamacpp_adapter.engine.hardware.backends import Backends
    from pdd_llamacpp_adapter.engine.hardware.model_size import ModelSize


def hardware(path: Path, params: LlamaParams) -> Iterator[Finding]:
    """Check the installed llama.cpp, and the memory that the model at `path` needs under these settings."""
    from pdd_llamacpp_adapter.engine.context import OUTPUTS
    from pdd_llamacpp_adapter.engine.hardware.backends import installed_backends
    from pdd_llamacpp_adapter.engine.hardware.model_size import model_size

    yield from placement(params, installed_backends(), model_size(path), outputs=OUTPUTS)


def placement(
    params: LlamaParams, backends: Backends, size: ModelSize | None, *, outputs: int
) -> Iterator[Finding]:
    """Check where a model of `size` would go."""
    from pdd_llamacpp_adapter.engine.hardware.placement import BUILD, gigabytes, placed

    devices = ", ".join(
        f"{gpu.name} ({gpu.description}, {gigabytes(gpu.free)} of {gigabytes(gpu.total)} free)"
        for gpu in backends.gpus
    )
    if devices:
        yield ok("devices", f"{backends.name}: {devices}")
    elif backends.offloads:
        yield warn("devices", "this build of llama.cpp could use a GPU, and finds none", "check the GPU's driver")
    else:
        yield ok("devices", f"CPU: this build of llama.cpp uses no GPU; for one, {BUILD}")
    try:
        found = placed(params, backends, size, outputs=outputs)
    except (ConfigurationError, DeviceEngineFailed) as error:
        yield fail("memory", str(error), "change the PDD_ variable that it names")
        return
    if size is None:
        yield warn("memory", "the file does not tell how large the model is", "use a GGUF of a known architecture")
        return
    detail = "; ".join(found.lines())
    yield warn("memory", detail, found.advice) if found.advice else ok("memory", detail)
