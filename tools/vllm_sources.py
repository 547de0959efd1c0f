"""Runs a command once for each of several releases of vLLM, with their Python files instead of the vLLM installed.

    python tools/vllm_sources.py 0.33.0 0.32.0 --run pytest tests/compat

A wheel of vLLM is over 300 MB, and its Python files are about 10 MB of it. Only those are read, by HTTP ranges,
and kept in the cache folder (`PDD_CACHE_DIR`). Nothing is compiled, and no dependency is installed. pip finds the
wheel, so that its settings (index, proxy) hold. Exits with an error if a run failed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from http.client import HTTPException
from subprocess import PIPE, STDOUT
from typing import TYPE_CHECKING, BinaryIO
from urllib.request import Request, urlopen

from pdd_cli.cache import published
from pdd_core.env import Env

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

CHUNK = 2 * 1024 * 1024
"""Bytes per request."""
TRIES = 5
WANTED = (".py", ".dist-info/METADATA", ".dist-info/entry_points.txt")


class RangedFile(io.RawIOBase):
    """A file on a web server that answers ranges, read where it is wanted.

    Raises:
        OSError: the server does not answer, or no longer with ranges.
    """

    def __init__(self, url: str, size: int) -> None:
        self._url = url
        self._size = size
        self._at = 0

    def seekable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return True."""
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; nothing is read."""
        self._at = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Read what comes next, with one request."""
        last = min(self._at + len(buffer), self._size) - 1
        if last < self._at:
            return 0
        data = self._get(f"bytes={self._at}-{last}")
        buffer[: len(data)] = data
        self._at += len(data)
        return len(data)

    def _get(self, span: str) -> bytes:
        for tried in range(1, TRIES + 1):
            try:
                with urlopen(Request(self._url, headers={"range": span}), timeout=60) as answer:  # noqa: S310
                    if answer.status == HTTPStatus.PARTIAL_CONTENT:
                        return answer.read()  # type: ignore[no-any-return]
                break
            except (OSError, HTTPException):
                if tried == TRIES:
                    raise
                time.sleep(tried)
        raise OSError(f"{self._url} is not served by ranges")


def opened(url: str) -> BinaryIO:
    """Open a remote file. It is copied whole where its server knows no ranges."""
    with urlopen(Request(url, method="HEAD"), timeout=60) as answer:  # noqa: S310 - from pip
        size, ranges = int(answer.headers["content-length"]), answer.headers["accept-ranges"]
    if ranges == "bytes":
        return io.BufferedReader(RangedFile(url, size), CHUNK)
    print(f"all {size / 1e6:.0f} MB of {url}: its server knows no ranges", flush=True)
    copy = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    with urlopen(url, timeout=60) as answer:  # noqa: S310
        shutil.copyfileobj(answer, copy, CHUNK)
    return copy


def wheel_url(version: str) -> str:
    """Ask pip where the wheel of a version lies; pip reads its metadata only."""
    pip = ["-m", "pip", "install", "--dry-run", "--ignore-installed", "--no-deps", "-qq", "--report", "-"]
    command = [sys.executable, *pip, "--only-binary", ":all:", f"vllm=={version}"]
    run = subprocess.run(command, check=True, stdout=PIPE)
    return str(json.loads(run.stdout)["install"][0]["download_info"]["url"])


def unpack(version: str, folder: Path) -> str:
    """Write the Python files of a release into `folder`. Returns what it took, in words."""
    print(f"vLLM {version}: reading its Python files", flush=True)
    begun = time.monotonic()
    with opened(wheel_url(version)) as file, zipfile.ZipFile(file) as wheel:
        members = [member for member in wheel.infolist() if member.filename.endswith(WANTED)]
        for member in sorted(members, key=lambda one: one.header_offset):  # so that each byte is read once
            wheel.extract(member, folder)
    # by "+cpu" vLLM picks its platform (vllm.platforms.cpu_platform_plugin), as in its own CPU builds
    metadata = next(folder.glob("*.dist-info/METADATA"))
    metadata.write_text(metadata.read_text().replace(f"\nVersion: {version}\n", f"\nVersion: {version}+cpu\n", 1))
    return f"{len(members)} files in {time.monotonic() - begun:.0f} s"


def provide(version: str) -> Path:
    """Return the folder with a release, which is unpacked unless the cache has it."""
    folder = Env().cache_dir / "vllm-sources" / version
    if not folder.is_dir():
        with published(folder) as draft:
            draft.mkdir()
            took = unpack(version, draft)
        print(f"vLLM {version}: {took}", flush=True)
    return folder


def run(version: str, command: Sequence[str]) -> int:
    """Run `command` with a release in front of everything that is installed; return its exit code.

    What it prints is shown when it has ended: others run beside it.
    """
    folder = provide(version)
    print(f"vLLM {version}: {' '.join(command)}", flush=True)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    ended = subprocess.run(command, env=environment, check=False, stdout=PIPE, stderr=STDOUT, text=True)
    print(f"vLLM {version} ended with {ended.returncode}:\n{ended.stdout}", flush=True)
    return ended.returncode


def main() -> None:
    """Provide each release, and run the command with it, as many at once as there are cores."""
    parser = argparse.ArgumentParser(description="Run a command once per release of vLLM, with its Python files.")
    parser.add_argument("versions", nargs="+", metavar="VERSION")
    parser.add_argument("--run", nargs=argparse.REMAINDER, required=True, help="the command and its arguments")
    options = parser.parse_args()
    # most of it is one core's work, that of importing vLLM
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        codes = list(pool.map(lambda version: run(version, options.run), options.versions))
    failed = [version for version, code in zip(options.versions, codes, strict=True) if code]
    if failed:
        sys.exit(f"failed with vLLM {', '.join(failed)}")


if __name__ == "__main__":
    main()
