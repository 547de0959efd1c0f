"""The workers' shelves as an API server sees them: which folders there are, and what they have of a handoff.

All calls are few system calls on files in memory, so they are made on the event loop.
"""

from __future__ import annotations

from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pdd_core.errors import InvalidCells
from pdd_core.kv.geometry import NoKV
from pdd_vllm_plugin.kv.shelf_file import CELLS, NONE, OpenCells, ShelfFile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from pdd_core.kv.geometry import KVGeometry
    from pdd_core.kv.pieces import Piece

GONE = NoKV(reason="gone", message="the cells are dropped: their time was up, or others needed the room")
OTHER_PROMPT = NoKV(reason="not_captured", message="the workers saw another prompt")
UNREADABLE = NoKV(reason="not_captured", message="the workers' file cannot be read")


class OpenParts:
    """The files of all parts of one prompt's cells, open for reading."""

    def __init__(self, parts: Sequence[OpenCells], geometry: KVGeometry) -> None:
        self._parts = parts
        self._geometry = geometry

    @property
    def number(self) -> int:
        """How many parts."""
        return len(self._parts)

    def frame(self, part: int, piece: Piece) -> tuple[bytes, bytes]:
        """Return the header and the payload of one part of `piece`. It reads a file: not for the event loop.

        Raises:
            InvalidCells: the file has become shorter.
        """
        header, payload = self._parts[part].frame(piece)
        if len(payload) != piece.tokens * self._geometry.part_bytes(part):
            raise InvalidCells(f"the file of part {part} ends before position {piece.end}")
        return header, payload

    def close(self) -> None:
        """Let the workers remove the files when they have to."""
        for part in self._parts:
            part.close()


@dataclass(frozen=True, slots=True)
class Shelves:
    """The folders of all workers that this API server sends requests to."""

    geometry: KVGeometry
    folders: Mapping[int, Sequence[Path]]
    """By the engine's rank: one for each part of the geometry, in order."""

    def find(self, handoff_id: str, engine: int | None) -> int | NoKV | None:
        """Look for cells: return the rank of the engine that has them, or why there are none, or None.

        `engine` is the one that has the request; None if that is not known.
        """
        for rank in self._ranks(engine):
            files = list(self._files(handoff_id, rank))
            for number, file in enumerate(files):
                if file.path(NONE).exists():
                    part = self._open(file, number)
                    if isinstance(part, NoKV):
                        return part
                    part.close()  # they have come meanwhile
            if all(file.path(CELLS).exists() for file in files):
                return rank
        return None

    def open(self, handoff_id: str, engine: int, *, tokens: int) -> OpenParts | NoKV:
        """Open the `tokens` cells that engine number `engine` has, or return why there are none."""
        with ExitStack() as opened:
            parts = []
            for number, file in enumerate(self._files(handoff_id, engine)):
                part = self._open(file, number)
                if isinstance(part, NoKV):
                    return part
                parts.append(opened.enter_context(part))
                if part.tokens != tokens:
                    return OTHER_PROMPT
            opened.pop_all()
            return OpenParts(parts, self.geometry)

    def drop(self, handoff_id: str, *, old: bool = False) -> None:
        """Have no reader find the cells any more. Who reads them goes on.

        With `old`, only what is there is dropped, and nothing that is still to come.
        """
        for rank in self.folders:
            for file in self._files(handoff_id, rank):
                if not old or file.path(CELLS).exists() or file.path(NONE).exists():
                    with suppress(OSError):  # the folder is gone with its worker
                        file.drop()

    def _open(self, file: ShelfFile, number: int) -> OpenCells | NoKV:
        try:
            return file.open(self.geometry, number) or GONE
        except (InvalidCells, OSError):
            return UNREADABLE

    def _ranks(self, engine: int | None) -> Sequence[int]:
        return list(self.folders) if engine is None or engine not in self.folders else [engine]

    def _files(self, handoff_id: str, rank: int) -> Iterator[ShelfFile]:
        return (ShelfFile(folder, handoff_id) for folder in self.folders[rank])
