"""One GGUF file, made into what each engine loads.

``python -m pdd_cli.convert device SOURCE TARGET`` and ``python -m pdd_cli.convert cloud SOURCE TARGET DEVICE``.
Conversions run in a process of their own: an unreadable GGUF can abort llama.cpp, hence its process, and torch's
memory is given back before vLLM asks for it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

from pdd_core.errors import ModelError

if TYPE_CHECKING:
    from pathlib import Path


def convert_for_device(source: Path, target: Path) -> None:
    """Write the device's F16 file, made from the GGUF `source`, to `target`, and have llama.cpp load it once.

    Raises:
        ModelError: `source` cannot be converted; the message has llama.cpp's own reason.
    """
    _convert("device", source, target)


def convert_for_cloud(source: Path, target: Path, *, device: Path) -> None:
    """Write the cloud's folder, made from the GGUF `source`, to `target`, and compare it with the file `device`.

    Raises:
        ModelError: `source` cannot be converted, or the two forms do not agree; the message says in what.
    """
    _convert("cloud", source, target, device)


def _convert(part: str, source: Path, *paths: Path) -> None:
    command = [sys.executable, "-m", "pdd_cli.convert", part, str(source), *map(str, paths)]
    offline = {**os.environ, "HF_HUB_OFFLINE": "1"}  # transformers would look for files that nobody has
    done = subprocess.run(command, env=offline, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1:] or [f"the converter ended with code {done.returncode}"]
        raise ModelError(f"{source} cannot be made into a model for the {part}: {reason[0]}")
