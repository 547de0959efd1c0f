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

    def __init__(self, parts: Sequence[OpenCells]) -> None:
        self._parts = parts

    @property
    def number(self) -> int:
        """How many parts."""
        return len(self._parts)

    def frame(self, part: int, piece: Piece) -> tuple[bytes, bytes]:
        """Return the header and the payload of one part of `piece`. It reads a file: not for the event loop."""
        return self._parts[part].frame(piece)

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
            if any(file.path(NONE).exists() for file in files):
                none = self.open(handoff_id, rank, tokens=0)
                if isinstance(none, NoKV):
                    return none
            elif all(file.path(CELLS).exists() for file in files):
                return rank
        return None

    def open(self, handoff_id: str, engine: int, *, tokens: int) -> OpenParts | NoKV:
        """Open the `tokens` cells that engine number `engine` has, or return why there are none."""
        with ExitStack() as opened:
            parts = []
            for number, file in enumerate(self._files(handoff_id, engine)):
                try:
                    part = file.open(self.geometry, number)
                except (InvalidCells, OSError):
                    return UNREADABLE
                if part is None:
                    return GONE
                if isinstance(part, NoKV):
                    return part
                parts.append(opened.enter_context(part))
                if part.tokens != tokens:
                    return OTHER_PROMPT
            opened.pop_all()
            return OpenParts(parts)

    def drop(self, handoff_id: str) -> None:
        """Have no reader find the cells any more. Who reads them goes on."""
        for rank in self.folders:
            for file in self._files(handoff_id, rank):
                with suppress(OSError):  # the folder is gone with its worker
                    file.drop()

    def _ranks(self, engine: int | None) -> Sequence[int]:
        return [engine] if engine in self.folders else list(self.folders)

    def _files(self, handoff_id: str, rank: int) -> Iterator[ShelfFile]:
        return (ShelfFile(folder, handoff_id) for folder in self.folders[rank])
