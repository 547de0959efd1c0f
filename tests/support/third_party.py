"""Installs the example policy as a third party's package would be."""

import subprocess
from pathlib import Path

from uv import find_uv_bin

PACKAGE = Path(__file__).parents[2] / "examples" / "policy_package"


def install_example_policy(target: Path) -> Path:
    """Install it into `target`, to be put on PYTHONPATH; returns `target`."""
    command = [find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--target", str(target), str(PACKAGE)]
    subprocess.run(command, check=True)
    return target
