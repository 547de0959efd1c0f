"""Files of the cache folder. Whatever lies where one should be, the program goes on without it."""

from __future__ import annotations

import json
import logging
import math
import stat
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

ASIDE = ".unreadable"
"""What the name of a file that cannot be used ends with, once it was set aside."""
_SHOWN = 200
"""Characters of a reason: it may quote the file."""
_DIGITS = 19
"""Of a whole number: more fit neither an int64 nor any quantity here."""

logger = logging.getLogger(__name__)


def check_file(path: Path, most_bytes: int) -> None:
    """Pass if `path` is a file that can be read to its end, soon: no folder, no pipe, no device.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: it cannot be looked at.
        ValueError: it is something else, or larger than `most_bytes`.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("no file")
    if found.st_size > most_bytes:
        raise ValueError(f"larger than {most_bytes} bytes")


def json_object(path: Path, most_bytes: int) -> dict[str, Any]:
    """Return what a file of JSON holds. Its numbers are finite, and whole ones have at most 19 digits.

    Raises:
        FileNotFoundError: there is nothing.
        OSError: it cannot be read.
        ValueError: it is no such file, not JSON, or no object; its arrays are nested too deeply, or a number is
            out of range.
    """
    check_file(path, most_bytes)
    text = path.read_text("utf-8")
    try:
        data = json.loads(text, parse_int=_whole, parse_float=_finite, parse_constant=_finite)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(data, dict):
        raise ValueError("no JSON object")  # noqa: TRY004 - of the file, not of an argument
    return data


def set_aside(path: Path, error: Exception) -> None:
    """Rename a file that cannot be used, so that another can take its place, and log one line."""
    logger.warning("%s is set aside, it cannot be used: %s", path, repr(error)[:_SHOWN])
    with suppress(OSError):  # then it stays, and is told again the next time
        path.replace(path.with_name(path.name + ASIDE))


def _whole(text: str) -> int:
    if len(text) > _DIGITS + text.startswith("-"):
        raise ValueError(f"a whole number of {len(text)} characters")
    return int(text)


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"not a finite number: {text[:_SHOWN]}")
    return value
