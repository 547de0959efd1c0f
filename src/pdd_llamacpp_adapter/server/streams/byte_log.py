"""The newest bytes of a stream, each in its place. Who writes them never waits for who reads them."""

from __future__ import annotations

import anyio


class ByteLog:
    """What one writer appends and any number of readers read. A byte's place is how many came before it.

    Args:
        most: bytes that are kept; of more, the oldest are dropped.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept = bytearray()
        self._bell = anyio.Event()
        self.begin = 0
        """Place of the oldest byte that is kept."""
        self.closed = False

    @property
    def end(self) -> int:
        """Place of the next byte: how many there have been."""
        return self.begin + len(self._kept)

    def append(self, data: bytes) -> None:
        """Add `data`, unless the log is closed."""
        if self.closed:
            return
        self._kept += data
        if (over := len(self._kept) - self._most) > 0:
            del self._kept[:over]
            self.begin += over
        self._ring()

    def close(self) -> None:
        """Say that nothing more will come."""
        self.closed = True
        self._ring()

    async def read(self, place: int, most: int) -> bytes | None:
        """Return up to `most` bytes from `place` on, once there is one; none when the log has ended before.

        Returns None if the byte at `place` has been dropped.
        """
        while self.end <= place and not self.closed:
            await self._bell.wait()
        if place < self.begin:
            return None
        return bytes(self._kept[place - self.begin : place - self.begin + most])

    async def wait_begun(self) -> None:
        """Wait until there is a byte, or will never be one."""
        while not self.end and not self.closed:
            await self._bell.wait()

    async def wait_closed(self) -> None:
        """Wait until nothing more will come."""
        while not self.closed:
            await self._bell.wait()

    def _ring(self) -> None:
        bell, self._bell = self._bell, anyio.Event()
        bell.set()
