"""API keys in files: a key on a command line shows in `ps`, to every user of the machine."""

from __future__ import annotations

import logging
import os
import stat
from typing import TYPE_CHECKING

from pdd_core.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

logger = logging.getLogger(__name__)

_LONGEST = 2**14
"""Bytes of a key file at most. A file that has no end, such as a device, is not one."""


def one_key(name: str, key: str | None, file: Path | None) -> str | None:
    """Return the key that is given, by itself or in a file; None without either.

    Args:
        name: what the key is called where it is given, such as ``api_key`` or ``--api-key``.
        key: the key.
        file: a file that holds nothing but the key, in one line. It is read once, so it may be a pipe.

    Raises:
        ConfigurationError: both are given, or the file has no key; the message names the setting.
    """
    if file is None:
        return key
    option = f"{name}{'-' if name.startswith('-') else '_'}file"
    if key is not None:
        raise ConfigurationError(f"{name} and {option} are both set: leave one of them out")
    try:
        with file.open("rb") as opened:
            data = opened.read(_LONGEST + 1)
            mode = os.fstat(opened.fileno()).st_mode
        found = data.decode().strip()
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{option}: {file} cannot be read: {error}") from None
    if not found:
        raise ConfigurationError(f"{option}: {file} is empty")
    if len(data) > _LONGEST or not found.isprintable():
        raise ConfigurationError(f"{option}: {file} must hold the key alone, in one line")
    if os.name == "posix" and stat.S_ISREG(mode) and mode & stat.S_IROTH:
        logger.warning("every user of this machine can read the key in %s: chmod 600 it", file)
    return found
