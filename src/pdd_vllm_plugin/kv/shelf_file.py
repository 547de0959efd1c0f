"""A prompt's packed cells in a file: the worker writes it, the API server reads it.

``NAME.cells`` has tokens and pieces (little-endian uint32), the CRC-32 of each piece's payload, and the payloads,
from the front of the prompt to its back. ``NAME.none`` has a `NoKV` as JSON instead. Both are written under
another name and renamed: a file is there whole or not at all. A reader holds a shared ``flock``, and the worker
removes only what nobody has locked. ``NAME.gone`` was dropped: no reader finds it, and the worker removes it.
"""

from __future__ import annotations

import fcntl
import os
import struct
import zlib
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic import ValidationError

from pdd_core.errors import InvalidCells
from pdd_core.kv.frames import header
from pdd_core.kv.geometry import PIECE_TOKENS, NoKV

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from pdd_core.kv.geometry import KVGeometry
    from pdd_core.kv.pieces import Piece

CELLS = ".cells"
NONE = ".none"
GONE = ".gone"
WRITING = ".writing"
NONCE = "nonce"
"""File of a shelf's folder that tells it from any other, on any machine."""
_COUNTS = struct.Struct("<II")


@dataclass(frozen=True, slots=True)
class ShelfFile:
    """What one worker's shelf, the folder `folder`, has of one handoff."""

    folder: Path
    handoff_id: str

    def path(self, suffix: str) -> Path:
        """Return the file's path. Its name does not tell the handoff id, which is a key to the state."""
        return self.folder / (blake2b(self.handoff_id.encode(), digest_size=16).hexdigest() + suffix)

    def write(self, tokens: int, cell_bytes: int, payloads: Iterable[tuple[Piece, bytes | memoryview]]) -> None:
        """Write cells, in place of what was there.

        Args:
            tokens: how many cells.
            cell_bytes: of one cell, this worker's part of it.
            payloads: all pieces of the prompt with their payloads, in any order.

        Raises:
            OSError: there is no room for it, for example. Nothing is left behind then.
        """
        crcs = np.zeros(pieces_of(tokens), dtype="<u4")
        begin = _COUNTS.size + crcs.nbytes
        with self._whole(CELLS) as fd:
            for piece, payload in payloads:
                crcs[piece.start // PIECE_TOKENS] = zlib.crc32(payload)
                _write_at(fd, payload, begin + piece.start * cell_bytes)
            _write_at(fd, _COUNTS.pack(tokens, len(crcs)) + crcs.tobytes(), 0)
        self.path(NONE).unlink(missing_ok=True)

    def write_none(self, none: NoKV) -> None:
        """Write why there are no cells, in place of what was there."""
        with self._whole(NONE) as fd:
            _write_at(fd, none.model_dump_json().encode(), 0)
        self.drop_cells()

    def drop(self) -> None:
        """Have no new reader find anything; the worker removes the bytes when nobody reads them.

        Cells that are still to come are dropped too: by the mark that there were none yet.
        """
        self.path(NONE).unlink(missing_ok=True)
        if not self.drop_cells():
            self.path(GONE).touch(0o600)

    def drop_cells(self) -> bool:
        """Do `drop` to cells only; return whether there are any."""
        try:
            self.path(CELLS).rename(self.path(GONE))
        except FileNotFoundError:
            return False
        return True

    def open(self, geometry: KVGeometry, number: int) -> OpenCells | NoKV | None:
        """Open the cells for reading; None if there is nothing (yet, or any more).

        Args:
            geometry: the agreed one.
            number: of this worker's part in it.

        Raises:
            InvalidCells: the file is not of this geometry.
        """
        try:
            return NoKV.model_validate_json(self.path(NONE).read_bytes())
        except FileNotFoundError:
            pass
        except ValidationError as error:
            raise InvalidCells(f"{self.path(NONE)} does not say why there are no cells") from error
        try:
            fd = os.open(self.path(CELLS), os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if os.fstat(fd).st_nlink:
                return OpenCells(fd, geometry, number)
        except BlockingIOError:
            pass  # it is just being removed
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)
        return None

    def _whole(self, suffix: str) -> _WholeFile:
        return _WholeFile(self.path(suffix + WRITING), self.path(suffix))


class OpenCells:
    """Cells that are being read. As long as they are open, the worker does not remove them.

    Methods may be called from several threads, `close` once all others have returned.
    """

    def __init__(self, fd: int, geometry: KVGeometry, number: int) -> None:
        """Take over `fd`, a locked file.

        Raises:
            InvalidCells: the file is not of this geometry. The file stays open.
        """
        self._fd = fd
        self._geometry = geometry
        self._number = number
        size = os.fstat(fd).st_size
        counts = os.pread(fd, _COUNTS.size, 0)
        self.tokens, pieces = _COUNTS.unpack(counts) if len(counts) == _COUNTS.size else (0, 0)
        """Cells of the prompt, from position 0 on."""
        self._cell_bytes = geometry.part_bytes(number)
        self._begin = _COUNTS.size + 4 * pieces
        right = self.tokens and pieces == pieces_of(self.tokens)
        if not right or size != file_bytes(self.tokens, self._cell_bytes):
            raise InvalidCells(f"a file of {size} bytes does not have {self.tokens} cells of part {number}")
        self._crcs = np.frombuffer(os.pread(fd, 4 * pieces, _COUNTS.size), dtype="<u4")

    def frame(self, piece: Piece) -> tuple[bytes, bytes]:
        """Return header and payload of this part of `piece`, one of `pieces_between` two positions."""
        begin = piece.start // PIECE_TOKENS * PIECE_TOKENS
        end = min(begin + PIECE_TOKENS, self.tokens)
        if not (begin <= piece.start < piece.end <= end):
            raise InvalidCells(f"{piece} is no piece of {self.tokens} cells")
        offset = self._begin + begin * self._cell_bytes
        payload = os.pread(self._fd, (end - begin) * self._cell_bytes, offset)
        crc = int(self._crcs[begin // PIECE_TOKENS])
        if piece.tokens < end - begin:
            payload = self._cut(payload, end - begin, slice(piece.start - begin, piece.end - begin))
            crc = zlib.crc32(payload)
        return header(self._number, piece.start, piece.tokens, crc), payload

    def close(self) -> None:
        """Let the worker remove the file when it has to."""
        os.close(self._fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _cut(self, payload: bytes, tokens: int, kept: slice) -> bytes:
        """Return the payload of some of the tokens: each layer's keys, and then its values, lie token by token."""
        part = self._geometry.parts[self._number]
        keys = part.num_heads * self._geometry.key_type.row_bytes(self._geometry.head_size)
        layers = np.frombuffer(payload, dtype=np.uint8).reshape(part.num_layers, -1)
        split = tokens * keys
        sides = (layers[:, :split], layers[:, split:])
        cut = [side.reshape(part.num_layers, tokens, -1)[:, kept].reshape(part.num_layers, -1) for side in sides]
        return np.concatenate(cut, axis=1).tobytes()


def pieces_of(tokens: int) -> int:
    """Return how many pieces `tokens` cells have."""
    return -(-tokens // PIECE_TOKENS)


def file_bytes(tokens: int, cell_bytes: int) -> int:
    """Return how long a file of `tokens` cells is."""
    return _COUNTS.size + 4 * pieces_of(tokens) + tokens * cell_bytes


class _WholeFile:
    """A context that gives a new file's descriptor, and renames the file if all went well, or removes it."""

    def __init__(self, written: Path, final: Path) -> None:
        self._written = written
        self._final = final

    def __enter__(self) -> int:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        self._fd = os.open(self._written, flags, 0o600)
        return self._fd

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        os.close(self._fd)
        if kind is None:
            self._written.rename(self._final)
        else:
            self._written.unlink(missing_ok=True)


def _write_at(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data).cast("B")
    while view:
        written = os.pwrite(fd, view, offset)
        view, offset = view[written:], offset + written
