"""Builds llama.cpp's wheel once per user and kind of processor, and keeps it.

Compiling takes minutes. uv keeps what it builds only as long as the index tells it that the source is unchanged,
which not every index does; and a wheel built for one processor, as llama.cpp's is, crashes on another.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import sys
import tempfile
import tomllib
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if sys.platform != "win32":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

ENGINE = "llama-cpp-python"
EXTRA = "device"
WITHOUT_IMAGES = "cmake.define.LLAVA_BUILD=off"
"""What reads images is 53 of 193 steps of the build, and is not used here."""
_WHEEL = re.compile(r"llama_cpp_python-(?P<version>[^-]+)-.+\.whl")


def engine_requirement(pyproject: Path) -> str:
    """Return the requirement on llama.cpp, as pyproject.toml has it."""
    extras = tomllib.loads(pyproject.read_text())["project"]["optional-dependencies"]
    return next(line for line in extras[EXTRA] if line.startswith(ENGINE))


def wheel_folder() -> Path:
    """Return where this user's wheels for this processor are kept; the same cache folder as the models'."""
    cache = os.environ.get("PDD_CACHE_DIR")
    if cache is None:
        cache = str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pdd-device")
    return Path(cache) / "wheels" / _processor()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), platform.processor())
    return hashlib.sha256(f"{platform.machine()} {flags}".encode()).hexdigest()[:12]


def cached_version(folder: Path) -> str | None:
    """Return the version of the wheel in `folder`, None if there is none."""
    versions = [match["version"] for path in folder.glob("*.whl") if (match := _WHEEL.fullmatch(path.name))]
    return max(versions, key=lambda version: [int(part) for part in re.findall(r"\d+", version)], default=None)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Wait for whoever builds here already: environments of tox that run side by side need the same wheel."""
    if sys.platform == "win32":  # where a folder cannot be locked, both build
        yield
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX)
        yield
    finally:
        os.close(opened)


def provide(
    uv: Sequence[str], requirement: str, folder: Path, run: Callable[[list[str]], int]
) -> tuple[int, str | None]:
    """Build the wheel unless `folder` has it. Returns the build's exit code, and the version to install."""
    version = cached_version(folder)
    if version is not None:
        return 0, version
    folder.mkdir(parents=True, exist_ok=True)
    # In a folder of its own: a build that is interrupted leaves nothing that looks like a wheel.
    with _alone(folder), tempfile.TemporaryDirectory(dir=folder) as draft:
        if (version := cached_version(folder)) is not None:
            return 0, version
        pip = [*uv, "tool", "run", "--python", sys.executable, "pip"]
        options = ("--verbose", "--no-deps", "--wheel-dir", draft, "--config-settings", WITHOUT_IMAGES)
        code = run([*pip, "wheel", *options, requirement])
        for wheel in Path(draft).glob("*.whl"):
            wheel.replace(folder / wheel.name)
    return code, cached_version(folder)
