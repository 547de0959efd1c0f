"""The stream of cells: frames, each a header and the payload of one part of one piece.

A header has the magic, the part's number, the piece's first position, its tokens, and the CRC-32 of the payload.
The payload's size follows from the geometry. The pieces come from the back of the prompt to its front, each with
all its parts. A frame without tokens ends the stream. What breaks off before can be asked for again from there.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdd_core.errors import InvalidCells
from pdd_core.kv.geometry import PIECE_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from pdd_core.kv.geometry import KVGeometry

MEDIA_TYPE = "application/vnd.pdd.kv"
_HEADER = struct.Struct("<4sHHIII")
_MAGIC = b"PDKV"
HEADER_BYTES = _HEADER.size


@dataclass(frozen=True, slots=True)
class Frame:
    """One part of one piece."""

    part: int
    start: int
    tokens: int
    payload: memoryview

    @property
    def last(self) -> bool:
        """Nothing follows."""
        return self.tokens == 0


def header(part: int, start: int, tokens: int, crc: int) -> bytes:
    """Return a frame's header; `crc` is ``zlib.crc32`` of the payload."""
    return _HEADER.pack(_MAGIC, part, 0, start, tokens, crc)


END = header(0, 0, 0, 0)
"""The frame that ends a stream."""


class FrameReader:
    """Reads frames out of chunks of a stream as they come. Holds at most one frame.

    Args:
        geometry: the agreed one.
        start: first position that was asked for.
        end: position behind the last one that was asked for: pieces follow each other from here to the front.
    """

    def __init__(self, geometry: KVGeometry, start: int, end: int) -> None:
        self._geometry = geometry
        self._start = start
        self._buffer = bytearray()
        self._end = end
        self._part = 0
        self.ended = False
        """The frame that ends the stream has come."""

    def feed(self, chunk: bytes) -> Iterator[Frame]:
        """Take in bytes of any number; yield the frames that are complete. A frame's payload is its own copy.

        Raises:
            InvalidCells: no frame, one that does not follow the one before, or a wrong checksum.
        """
        self._buffer += chunk
        while len(self._buffer) >= HEADER_BYTES:
            if self.ended:
                raise InvalidCells("bytes follow behind the last frame")
            magic, part, reserved, start, tokens, crc = _HEADER.unpack_from(self._buffer)
            if magic != _MAGIC or reserved:
                raise InvalidCells("no frame of cells begins here")
            self._check(part, start, tokens)
            size = HEADER_BYTES + (tokens and tokens * self._geometry.part_bytes(part))
            if len(self._buffer) < size:
                return
            payload = memoryview(bytes(self._buffer[HEADER_BYTES:size]))
            del self._buffer[:size]
            if zlib.crc32(payload) != crc:
                raise InvalidCells(f"the checksum of the cells from {start} on is wrong")
            self._follow(start, tokens)
            yield Frame(part, start, tokens, payload)

    def _check(self, part: int, start: int, tokens: int) -> None:
        if part != self._part:
            raise InvalidCells(f"part {part} of a piece follows where part {self._part} has to")
        if not tokens:
            return
        begin = max(self._start, (self._end - 1) // PIECE_TOKENS * PIECE_TOKENS)
        if self._end <= self._start or (start, start + tokens) != (begin, self._end):
            raise InvalidCells(f"{tokens} cells from {start} on do not follow those from {self._end} on")

    def _follow(self, start: int, tokens: int) -> None:
        if not tokens:
            self.ended = True
            return
        self._part = (self._part + 1) % len(self._geometry.parts)
        if not self._part:
            self._end = start
