"""The base install has neither engine, and importing a package must not need or load one."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "vllm", "llama_cpp", "transformers", "numpy", "fastapi"}


@pytest.mark.parametrize(
    "package", ["pdd_core", "pdd_core.env", "pdd_vllm_plugin", "pdd_llamacpp_adapter", "pdd_cli.main"]
)
def test_importing_a_package_loads_no_engine(package):
    code = f"import sys, {package}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    # -W error is off: an engine that is installed may warn when another process imports it
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []
