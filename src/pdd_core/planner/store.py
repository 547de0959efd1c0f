"""Keeps what was learnt in files of the cache folder: numbers only, no text, no names."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pdd_core.cache_file import ASIDE, json_object, set_aside

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

SCHEMA_VERSION = "1.0"
MAX_FILES = 64
"""Of one folder; the ones written longest ago go first."""
MAX_BYTES = 4 * 2**20
"""A larger file is not ours."""

logger = logging.getLogger(__name__)


class Store:
    """One file for each kind and name, in `folder`. Times of a millisecond or so; a worker thread's work.

    Nothing here ever fails an answer: what cannot be read is set aside, what cannot be written is a warning.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._warned = False

    def path(self, kind: str, *names: str) -> Path:
        """Return the file of `names`, such as a cloud's address and its model; the names cannot be read off it."""
        digest = hashlib.blake2b("\0".join(names).encode(errors="replace"), digest_size=8).hexdigest()
        return self._folder / f"{kind}-{digest}.json"

    def restore(self, path: Path, take: Callable[[Mapping[str, Any]], object]) -> bool:
        """Give the content of `path` to `take`; return whether there was any, and all of it could be used."""
        try:
            take(_content(path))
        except FileNotFoundError:
            return False
        except Exception as error:  # noqa: BLE001 - whatever somebody wrote there, the program goes on
            set_aside(path, error)
            return False
        return True

    def save(self, path: Path, data: Mapping[str, Any]) -> None:
        """Write `data`, whole or not at all."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            text = json.dumps({"schema_version": SCHEMA_VERSION, **data}, separators=(",", ":"))
            handle, name = tempfile.mkstemp(dir=self._folder, suffix=".tmp")
            temporary = Path(name)
            try:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(text)
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)
            self._prune()
        except OSError as error:
            if not self._warned:
                self._warned = True
                logger.warning("what was learnt is not kept: %s", error)

    def _prune(self) -> None:
        for pattern in ("*-*.json", f"*-*.json{ASIDE}"):
            files = [file for file in self._folder.glob(pattern) if file.is_file()]
            files.sort(key=lambda file: file.stat().st_mtime)
            for file in files[: max(0, len(files) - MAX_FILES)]:
                file.unlink(missing_ok=True)


def _content(path: Path) -> dict[str, Any]:
    data = json_object(path, MAX_BYTES)
    if str(data["schema_version"]).partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise ValueError("written by another version")
    return data
