"""What a trace format is: how its file becomes the columns of a trace, and what is wrong with one of its lines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

MOST_TOKENS = 2**31 - 1
"""Of one prompt or answer. More is a broken file."""

INTEGER = re.compile(r"[+-]?\d{1,18}")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


class Format(Protocol):
    """One file format."""

    name: str
    header: bool
    """Whether the first line names the columns."""

    def fits(self, first_line: str) -> bool:
        """Whether a file that begins with this line is of this format."""

    def scan(self, path: Path) -> pl.LazyFrame:
        """Return the file as columns, without reading it: ``arrival`` (seconds), ``prompt``, ``output`` (tokens).

        Where the format has them also ``hashes``, ``block_tokens``, ``group`` and ``session``. A value that
        cannot be read is null.
        """

    def check(self, line: str, first_line: str) -> None:
        """Raise ValueError with the reason if this line cannot be read."""


def check_tokens(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a number of tokens, as text or as JSON has it."""
    if type(value) not in (int, str) or not INTEGER.fullmatch(str(value)):
        raise ValueError(f"{name} is {value!r}, not a whole number")
    if not 0 <= int(str(value)) <= MOST_TOKENS:
        raise ValueError(f"{name} is {value}, not between 0 and {MOST_TOKENS}")


def check_seconds(name: str, value: object) -> None:
    """Raise ValueError unless `value` is a finite number, as text or as JSON has it."""
    text = value if isinstance(value, str) else repr(value)
    if not NUMBER.fullmatch(text) or abs(float(text)) > 1e15:
        raise ValueError(f"{name} is {value!r}, not a number")
