"""Files and folders that are either complete or not there."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterator


@contextmanager
def published(target: Path) -> Iterator[Path]:
    """Give a path to build `target` at, and rename what is there to `target` when the block ends well.

    Two processes may build one target at once: each builds its own, the first folder (or the last file) stays, and
    both find `target` complete. After an exception nothing remains.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    # beside the target: a rename is atomic only within one file system
    with TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        draft = Path(scratch) / target.name
        yield draft
        try:
            draft.replace(target)  # `rename` fails on Windows where there is a file
        except OSError:
            # a folder cannot replace a folder: another process was first, with the same content
            if not target.is_dir():
                raise


def check_folder(folder: Path, *, option: str) -> None:
    """Make `folder` if need be, and check that files can be written there, before they are made.

    Raises:
        ConfigurationError: they cannot; names `option`.
    """
    _check(folder, f"{option} {folder}")


def check_writable(*targets: Path | None) -> None:
    """Pass if each target that is wanted can be written, before the work whose results go there.

    Folders that are missing are made.

    Raises:
        ConfigurationError: one cannot be written.
    """
    for target in targets:
        if target is not None:
            _check(target.parent, str(target))


def _check(folder: Path, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder):
            pass
    except OSError as error:
        raise ConfigurationError(f"{name} cannot be written: {error}") from error
