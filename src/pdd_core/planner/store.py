"""Keeps what was learnt in files of the cache folder: numbers only, no text, no names."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

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

    Nothing here ever fails an answer: what cannot be read is begun afresh, what cannot be written is a warning.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._warned = False

    def path(self, kind: str, *names: str) -> Path:
        """Return the file of `names`, such as a cloud's address and its model; the names cannot be read off it."""
        digest = hashlib.blake2b("\0".join(names).encode(errors="replace"), digest_size=8).hexdigest()
        return self._folder / f"{kind}-{digest}.json"

    def restore(self, path: Path, take: Callable[[Mapping[str, Any]], object]) -> bool:
        """Give the content of `path` to `take`; return whether there was any that could be used."""
        try:
            take(_content(path))
        except FileNotFoundError:
            return False
        except (OSError, ValueError, TypeError, KeyError, AttributeError, IndexError, RecursionError) as error:
            logger.warning("%s is begun afresh, it cannot be read: %s: %s", path, type(error).__name__, error)
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
        files = sorted(self._folder.glob("*-*.json"), key=lambda file: file.stat().st_mtime)
        for file in files[: max(0, len(files) - MAX_FILES)]:
            file.unlink(missing_ok=True)


def _content(path: Path) -> dict[str, Any]:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    data: dict[str, Any] = json.loads(path.read_text("utf-8"))
    if str(data["schema_version"]).partition(".")[0] != SCHEMA_VERSION.partition(".")[0]:
        raise ValueError("written by another version")
    return data
