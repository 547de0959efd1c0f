"""Installs Debian's Chromium for the tests of the server's pages, unless there is a Chromium.

    python tools/install_browser.py

It is installed with apt, as root or by sudo. Where there is no apt, or no right to use it, nothing happens, and
the tests say why they are skipped. Exits with apt's own code.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome")
"""Programs that will do, by the names that distributions give them."""


def chromium() -> str | None:
    """Return the path of a Chromium; None where there is none."""
    return next((path for path in map(shutil.which, NAMES) if path), None)


def apt() -> list[str] | None:
    """Return the beginning of a command line that may install packages; None where there is none."""
    if shutil.which("apt-get") is None:
        return None
    if os.geteuid() == 0:
        return ["apt-get"]
    asked = shutil.which("sudo") and subprocess.run(["sudo", "-n", "true"], capture_output=True, check=False)  # noqa: S607
    return ["sudo", "-n", "apt-get"] if asked and asked.returncode == 0 else None


def main() -> int:
    """Install it if need be. Two environments that are made side by side take turns."""
    with (Path(tempfile.gettempdir()) / "pdd-install-browser.lock").open("a") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX)
        return _install()


def _install() -> int:
    if found := chromium():
        print(f"{found} is there")
        return 0
    command = apt()
    if command is None:
        print("no Chromium, and no right to install one with apt: the tests of the pages will be skipped")
        return 0
    subprocess.run([*command, "update", "--quiet"], check=False)
    install = [*command, "install", "--yes", "--quiet", "--no-install-recommends", "chromium"]
    return subprocess.run(install, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
