from __future__ import annotations

import stat
import sys
import textwrap
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[3] / "tools"
sys.path.insert(0, str(TOOLS))  # as Python does for a script


@pytest.fixture
def fake_uv(tmp_path):
    def write(body: str) -> Path:
        path = tmp_path / "uv"
        path.write_text(f"#!{sys.executable}\nimport sys, time\n{textwrap.dedent(body)}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return write
