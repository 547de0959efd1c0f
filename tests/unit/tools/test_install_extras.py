from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import threading
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "tools" / "install_extras.py"


@pytest.fixture(scope="module")
def tool():
    spec = importlib.util.spec_from_file_location("install_extras", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_tool(uv: Path, *extras: str) -> subprocess.CompletedProcess[str]:
    environ = {"UV": str(uv), "PDD_CACHE_DIR": str(uv.parent / "cache")}
    return subprocess.run(
        [sys.executable, SCRIPT, *extras], env=environ, capture_output=True, text=True, timeout=60
    )


def test_shows_news_and_hides_debug_lines(fake_uv) -> None:
    uv = fake_uv("""
        print("DEBUG Searching for the moon", file=sys.stderr)
        print("Resolved 3 packages in 1ms", file=sys.stderr)
        print("Downloading torch (200.0MiB)", file=sys.stderr)
        print(" + torch==2.13.0", file=sys.stderr)
    """)
    done = run_tool(uv, "cloud-cpu")
    assert done.returncode == 0
    shown = ["Resolved 3 packages in 1ms", "Downloading torch (200.0MiB)", " + torch==2.13.0"]
    assert done.stdout.splitlines() == shown


def test_passes_extras_and_interpreter_to_uv(fake_uv) -> None:
    uv = fake_uv("""print("warning: " + " ".join(sys.argv[1:]))""")
    done = run_tool(uv, "cloud-cpu", "demo")
    expected = f"pip install --verbose --python {sys.executable} --editable .[cloud-cpu,demo]"
    assert done.stdout.strip() == f"warning: {expected}"


@pytest.mark.parametrize(
    ("words", "extras"),
    [(["lab"], "."), (["lab", "plots"], ".[plots]"), (["plots", "lab", "demo"], ".[plots,demo]")],
)
def test_the_laboratory_is_installed_as_a_distribution_of_its_own(fake_uv, words: list[str], extras: str) -> None:
    uv = fake_uv("""print("warning: " + " ".join(sys.argv[1:]))""")
    done = run_tool(uv, *words)
    expected = f"pip install --verbose --python {sys.executable} --editable {extras} --editable src/pdd_lab"
    assert done.stdout.strip() == f"warning: {expected}"


def test_the_laboratorys_folder_holds_that_distribution(tool) -> None:
    project = tomllib.loads((tool.ROOT / tool.LAB_FOLDER / "pyproject.toml").read_text())["project"]
    assert project["name"] == f"pdd-{tool.LAB}"


def test_failure_shows_the_tail_with_debug_lines_and_keeps_the_exit_code(fake_uv) -> None:
    uv = fake_uv("""
        print("DEBUG CMake Error: no compiler")
        sys.exit(3)
    """)
    done = run_tool(uv, "cloud-cpu")
    assert done.returncode == 3
    assert "DEBUG CMake Error: no compiler\nuv ended with exit code 3" in done.stdout


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        (
            "DEBUG [12/230] Building CXX object vendor/llama.cpp/src/CMakeFiles/llama.dir/llama-vocab.cpp.o",
            "compiling [12/230] llama-vocab.cpp.o",
        ),
        ("DEBUG [  7%] Building C object a/ggml.c.o", "compiling [7%] ggml.c.o"),
        (
            "  [2/193] /usr/bin/gcc -DGGML -I/somewhere/long -o x/ggml.c.o -c /src/ggml.c",
            "compiling [2/193] ggml.c",
        ),
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


FAKE_BUILD = """
    import pathlib
    if sys.argv[1:3] == ["tool", "run"]:
        assert sys.argv[-2] == "cmake.define.LLAVA_BUILD=off"
        assert sys.argv[-1].startswith("llama-cpp-python>=")
        folder = pathlib.Path(sys.argv[sys.argv.index("--wheel-dir") + 1])
        (folder / "llama_cpp_python-0.3.40-py3-none-linux_x86_64.whl").touch()
    else:
        import os
        print("warning: " + os.environ["UV_FIND_LINKS"] + " " + " ".join(sys.argv[1:]))
"""


def test_llama_cpp_is_built_once_and_that_very_wheel_installed(fake_uv, tmp_path) -> None:
    uv = fake_uv(FAKE_BUILD)
    first, second = run_tool(uv, "device"), run_tool(uv, "device")
    (wheel,) = (tmp_path / "cache" / "wheels").glob("*/*.whl")
    for done in (first, second):
        assert done.returncode == 0
        assert f"warning: {wheel.parent} pip install" in done.stdout
        assert "llama-cpp-python==0.3.40 --editable .[device]" in done.stdout
    assert "Building llama-cpp-python" in first.stdout
    assert "Building" not in second.stdout


def test_a_build_that_fails_leaves_no_wheel_and_installs_nothing(fake_uv, tmp_path) -> None:
    done = run_tool(fake_uv("sys.exit(4) if sys.argv[1] == 'tool' else print('warning: installed')"), "device")
    assert done.returncode == 4
    assert "installed" not in done.stdout
    assert not [path for path in (tmp_path / "cache" / "wheels").rglob("*") if path.is_file()]


def test_who_comes_while_the_wheel_is_built_waits_and_takes_it(tmp_path, monkeypatch) -> None:
    import wheel_cache

    looked, plain = threading.Event(), wheel_cache.cached_version

    def watched(folder):
        found = plain(folder)
        looked.set()
        return found

    monkeypatch.setattr(wheel_cache, "cached_version", watched)
    built = []
    with ThreadPoolExecutor(1) as pool:
        with wheel_cache._alone(tmp_path):
            waiting = pool.submit(wheel_cache.provide, ["uv"], "llama-cpp-python", tmp_path, built.append)
            assert looked.wait(60)
            (tmp_path / "llama_cpp_python-0.3.40-py3-none-linux_x86_64.whl").touch()
        assert waiting.result() == (0, "0.3.40")
    assert built == []


def test_the_newest_cached_wheel_counts(tmp_path) -> None:
    import wheel_cache

    assert wheel_cache.cached_version(tmp_path) is None
    for version in ("0.3.9", "0.3.36", "0.3.10"):
        (tmp_path / f"llama_cpp_python-{version}-py3-none-any.whl").touch()
    assert wheel_cache.cached_version(tmp_path) == "0.3.36"


def test_the_requirement_is_that_of_the_extra(tool) -> None:
    import wheel_cache

    assert wheel_cache.engine_requirement(tool.ROOT / "pyproject.toml").startswith("llama-cpp-python>=0.3.36")
