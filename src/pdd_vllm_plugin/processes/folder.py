"""The folder that the API processes of one server share: this user's alone, and gone with the last of them.

Each process holds a shared lock (``flock``) on the folder. The kernel drops it however the process ends, so a
folder that can be locked for one alone belongs to a server that is gone. (systemd-tmpfiles respects it as well.)
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from pdd_core.errors import UnsupportedDeployment

LONGEST_PATH = 100
"""Bytes of a Unix socket's path: the systems' bounds are 104 and 108."""
_ATTEMPTS = 100


def default_base() -> Path:
    """Memory if there is a file system for it, else the folder for temporary files (``TMPDIR``)."""
    memory = Path("/dev/shm")  # noqa: S108 - what is made in it is checked below
    return memory if os.access(memory, os.W_OK | os.X_OK) else Path(tempfile.gettempdir())


class SharedFolder:
    """One process's hold on the folder of the server named `server`, in `base`."""

    def __init__(self, base: Path, server: str) -> None:
        """Make or join the folder, and remove those of servers that have ended.

        Raises:
            UnsupportedDeployment: the folder is not this user's alone, or cannot be made, or its path is too long.
        """
        prefix = f"pdd-{os.geteuid()}-"
        self.path = base / f"{prefix}{server}"
        if len(os.fsencode(self.path)) + len("/99.sock") > LONGEST_PATH:
            raise UnsupportedDeployment(
                f"{base} is too long for the path of a socket: set TMPDIR to a shorter one"
            )
        try:
            self.fd = self._join()
            for other in base.glob(f"{prefix}*"):
                if other != self.path:
                    _remove_if_unused(other)
        except OSError as error:
            raise UnsupportedDeployment(f"API server processes cannot share {self.path}: {error}") from error

    def _join(self) -> int:
        for _ in range(_ATTEMPTS):
            with suppress(FileExistsError):
                self.path.mkdir(mode=0o700)
            try:
                fd = _open(self.path)
            except FileNotFoundError:
                continue  # the last of another server's processes took it for a stale one
            try:
                fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
                if os.path.samestat(os.fstat(fd), self.path.lstat()):
                    return fd
            except (BlockingIOError, FileNotFoundError):
                pass
            os.close(fd)
            time.sleep(0.01)
        raise UnsupportedDeployment(f"{self.path} cannot be locked")

    def leave(self) -> None:
        """Let go; the last one removes the folder."""
        with suppress(OSError):
            fcntl.flock(self.fd, fcntl.LOCK_UN)
        os.close(self.fd)
        _remove_if_unused(self.path)


def remove_after(base: Path, server: str) -> None:
    """Remove what the processes of a server have left. They may take a moment to end, and are waited for."""
    path = base / f"pdd-{os.geteuid()}-{server}"
    for _ in range(_ATTEMPTS):
        _remove_if_unused(path)
        if not path.exists():
            return
        time.sleep(0.03)


def _open(path: Path) -> int:
    """Open a folder that nobody else can look into.

    Raises:
        UnsupportedDeployment: it is another user's, or others may enter it, or it is no folder.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    except (NotADirectoryError, PermissionError) as error:
        raise UnsupportedDeployment(f"{path} is not this server's: remove it ({error.strerror})") from error
    found = os.fstat(fd)
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(fd)
        raise UnsupportedDeployment(f"{path} belongs to another user, or others may enter it: remove it")
    return fd


def _remove_if_unused(path: Path) -> None:
    try:
        fd = _open(path)
    except (OSError, UnsupportedDeployment):
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.path.samestat(os.fstat(fd), path.lstat()):
            shutil.rmtree(path, ignore_errors=True)
    except OSError:
        pass  # in use
    finally:
        os.close(fd)
