"""One worker's shelf: the files of its prompts' cells, bounded in bytes, in number and in age.

What is on it is what is in its folder: API servers drop files by renaming them, see `shelf_file`.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
import threading
import time
import weakref
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import TYPE_CHECKING

from pdd_core.kv.geometry import NoKV
from pdd_vllm_plugin.kv.shelf_file import CELLS, GONE, NONCE, NONE, ShelfFile, file_bytes
from pdd_vllm_plugin.processes.folder import SharedFolder, default_base

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from pdd_core.kv.pieces import Piece

NO_ROOM = NoKV(reason="no_room", message="the server's shelf is full of other prompts' cells: kv_shelf_bytes")
MARK_S = 60.0
"""How long a mark stays that a handoff was dropped before its cells were there: longer than they may wait."""
_SMALL = 4096
"""Bytes that a file without cells counts: a page."""


class Shelf:
    """A folder of this process's own, removed with it. Its methods may be called from several threads.

    Args:
        most_bytes: of all files together.
        ttl_s: seconds for which a file is kept.
        base: where the folder is made; by default in memory if there is room for it.
        clock: of the files' times.
    """

    def __init__(
        self,
        most_bytes: int,
        ttl_s: float,
        *,
        base: Path | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        # The folder's name is nobody else's, and a lock says as long as this process lives that it is in use:
        # others remove what a process left that was killed, and nothing else.
        folder = SharedFolder(_base(most_bytes) if base is None else base, f"kv-{token_hex(8)}")
        self.folder = folder.path
        self.close = weakref.finalize(self, folder.leave)  # which Python also calls at the process's end
        self.nonce = token_hex(16)
        (self.folder / NONCE).write_text(self.nonce)
        self._most_bytes = most_bytes
        self._ttl_s = ttl_s
        self._clock = clock
        self._lock = threading.Lock()
        self._reserved = 0
        self.evicted = 0
        """Prompts whose cells went before their time, for others."""

    def fits(self, tokens: int, cell_bytes: int) -> bool:
        """Whether cells could ever be put here."""
        return file_bytes(tokens, cell_bytes) <= self._most_bytes

    def put(
        self,
        handoff_id: str,
        tokens: int,
        cell_bytes: int,
        payloads: Iterable[tuple[Piece, bytes | memoryview]],
        *,
        since: float = 0.0,
    ) -> bool:
        """Write cells, or that there is no room for them; return whether they were written.

        Args:
            handoff_id: names the file.
            tokens: how many cells.
            cell_bytes: of each.
            payloads: the packed pieces.
            since: the clock's time when they were taken. A handoff that was dropped later gets none.
        """
        file = ShelfFile(self.folder, handoff_id)
        with self._room(file_bytes(tokens, cell_bytes)) as there:
            if there:
                try:
                    file.write(tokens, cell_bytes, payloads)
                except OSError:  # the file system is full, with files of others
                    there = False
        if not there:
            self.put_none(handoff_id, NO_ROOM)
            return False
        with suppress(FileNotFoundError):
            if file.path(GONE).stat().st_mtime >= since:
                file.drop()
        return True

    def put_none(self, handoff_id: str, none: NoKV) -> None:
        """Write why there are no cells. If not even that can be written, nothing is found."""
        with self._room(_SMALL) as there, suppress(OSError):
            if there:
                ShelfFile(self.folder, handoff_id).write_none(none)

    def sweep(self) -> bool:
        """Remove what is too old, or dropped, and not being read. Return whether anything is left."""
        with self._lock:
            return bool(self._swept())

    def counts(self) -> dict[str, int]:
        """What is there."""
        files = [entry for entry in os.scandir(self.folder) if entry.name.endswith((CELLS, GONE))]
        sizes = [size for entry in files if (size := _size(entry))]
        return {"stored": len(sizes), "stored_bytes": sum(sizes), "evicted": self.evicted}

    @contextmanager
    def _room(self, size: int) -> Iterator[bool]:
        with self._lock:
            there = self._make_room(size)
            self._reserved += size if there else 0
        try:
            yield there
        finally:
            with self._lock:
                self._reserved -= size if there else 0

    def _make_room(self, size: int) -> bool:
        left = self._swept()
        most = self._most_bytes - self._reserved - size
        held = sum(counted for _, counted, _ in left)
        for _, counted, path in sorted(left):
            if held <= most:
                break
            if _removed(path):
                held -= counted
                self.evicted += path.endswith(CELLS)
        return held <= most

    def _swept(self) -> list[tuple[float, int, str]]:
        """Remove what has to go; return the rest, as time, bytes and path."""
        now, left = self._clock(), []
        for entry in os.scandir(self.folder):
            if not entry.name.endswith((CELLS, NONE, GONE)):
                continue
            try:
                found = entry.stat()
            except FileNotFoundError:
                continue  # renamed
            age = now - found.st_mtime
            dropped = entry.name.endswith(GONE) and found.st_size > 0
            over = dropped or age > (MARK_S if entry.name.endswith(GONE) else self._ttl_s)
            if not (over and _removed(entry.path)):
                left.append((found.st_mtime, max(found.st_size, _SMALL), entry.path))
        return left


def _base(size: int) -> Path:
    """Return where the folder is made: in memory if `size` bytes are free there."""
    base = default_base()
    found = os.statvfs(base)
    return base if found.f_bavail * found.f_frsize >= size else Path(tempfile.gettempdir())


def _size(entry: os.DirEntry[str]) -> int:
    with suppress(FileNotFoundError):
        return entry.stat().st_size
    return 0


def _removed(path: str) -> bool:
    """Remove a file that nobody reads; return whether it is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(path).unlink(missing_ok=True)
    except BlockingIOError:
        return False
    finally:
        os.close(fd)
    return True
