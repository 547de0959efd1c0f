"""How much each API process holds, in memory that all of them map: a row of whole numbers per process.

A process writes its own row only. Each number is aligned, so that it is read whole.
"""

from __future__ import annotations

import mmap
import os

from pdd_vllm_plugin.handoff_names import Totals

_COLUMNS = 4
_BYTES = 8 * _COLUMNS


class SharedCounts:
    """Rows of `count` processes, in the folder open as `folder_fd`. This process is number `rank`."""

    def __init__(self, folder_fd: int, rank: int, count: int) -> None:
        self.rank, self.count = rank, count
        self._others = [other * _COLUMNS for other in range(count) if other != rank]
        fd = os.open("counts", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600, dir_fd=folder_fd)
        try:
            os.ftruncate(fd, count * _BYTES)  # the same length for each: what is there stays
            self._rows = memoryview(mmap.mmap(fd, count * _BYTES)).cast("q")
        finally:
            os.close(fd)
        self.tell(Totals())
        self._rows[rank * _COLUMNS] = os.getpid()

    def tell(self, own: Totals) -> None:
        """Write this process's row."""
        at = self.rank * _COLUMNS
        self._rows[at + 1], self._rows[at + 2], self._rows[at + 3] = own

    def others(self) -> Totals:
        """Sum up the rows of the other processes. It is asked for each request, so it does not look who lives."""
        rows, records, ended, held = self._rows, 0, 0, 0
        for at in self._others:
            if rows[at]:
                records += rows[at + 1]
                ended += rows[at + 2]
                held += rows[at + 3]
        return Totals(records, ended, held)

    def fullest(self) -> int | None:
        """Return the number of the other process with most states that can make way; None if nobody has any."""
        ranks = (at // _COLUMNS for at in self._others)
        most, rank = max(
            ((self._rows[rank * _COLUMNS + 2], rank) for rank in ranks if self.is_alive(rank)), default=(0, 0)
        )
        return rank if most else None

    def is_alive(self, rank: int) -> bool:
        """Has this process come, and neither left nor died? The row of one that died counts no more."""
        if not 0 <= rank < self.count or not (pid := self._rows[rank * _COLUMNS]):
            return False
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            self._rows[rank * _COLUMNS] = 0
            return False
        return True

    def leave(self) -> None:
        """Say that this process has ended."""
        self._rows[self.rank * _COLUMNS] = 0
