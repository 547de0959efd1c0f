from __future__ import annotations

import importlib.util
import io
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "tools" / "install_extras.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("install_extras", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def fake_uv(tmp_path):
    def write(body: str) -> Path:
        path = tmp_path / "uv"
        path.write_text(f"#!{sys.executable}\nimport sys, time\n{textwrap.dedent(body)}")
        path.chmod(path.stat().st_mode | stat.S_IXUSR)
        return path

    return write


def run_tool(uv: Path, *extras: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *extras], env={"UV": str(uv)}, capture_output=True, text=True, timeout=60
    )


def test_shows_news_and_hides_debug_lines(fake_uv) -> None:
    uv = fake_uv("""
        print("DEBUG Searching for the moon", file=sys.stderr)
        print("Resolved 3 packages in 1ms", file=sys.stderr)
        print("Downloading torch (200.0MiB)", file=sys.stderr)
        print(" + torch==2.13.0", file=sys.stderr)
    """)
    done = run_tool(uv, "device")
    assert done.returncode == 0
    shown = ["Resolved 3 packages in 1ms", "Downloading torch (200.0MiB)", " + torch==2.13.0"]
    assert done.stdout.splitlines() == shown


def test_passes_extras_and_interpreter_to_uv(fake_uv) -> None:
    uv = fake_uv("""print("warning: " + " ".join(sys.argv[1:]))""")
    done = run_tool(uv, "cloud-cpu", "device")
    expected = f"pip install --verbose --python {sys.executable} --editable .[cloud-cpu,device]"
    assert done.stdout.strip() == f"warning: {expected}"


def test_failure_shows_the_tail_with_debug_lines_and_keeps_the_exit_code(fake_uv) -> None:
    uv = fake_uv("""
        print("DEBUG CMake Error: no compiler")
        sys.exit(3)
    """)
    done = run_tool(uv, "device")
    assert done.returncode == 3
    assert "DEBUG CMake Error: no compiler\nuv ended with exit code 3" in done.stdout


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "DEBUG [12/230] Building CXX object vendor/llama.cpp/src/CMakeFiles/llama.dir/llama-vocab.cpp.o",
            "compiling [12/230] Building CXX object llama-vocab.cpp.o",
        ),
        ("DEBUG [  7%] Building C object a/ggml.c.o", "compiling [7%] Building C object ggml.c.o"),
        ("   Building llama-cpp-python==0.3.36", "building llama-cpp-python==0.3.36"),
    ],
)
def test_a_long_build_is_reported_by_its_latest_step(tool, line: str, shown: str) -> None:
    out = io.StringIO()
    progress = tool.Progress(out, interval=0.0)
    progress.feed(line + "\n")
    progress.beat()
    assert out.getvalue().splitlines()[-1] == f"[0:00] {shown}"


def test_the_beat_is_silent_while_lines_are_fresh(tool) -> None:
    out = io.StringIO()
    progress = tool.Progress(out, interval=60.0)
    progress.feed("Resolved 3 packages in 1ms")
    progress.beat()
    assert out.getvalue() == "Resolved 3 packages in 1ms\n"
