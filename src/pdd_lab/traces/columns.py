"""What a trace format is: how its file becomes the columns of a trace, and what is wrong with one of its lines."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from io import BytesIO
    from pathlib import Path

    import polars as pl

MOST_TOKENS = 2**31 - 1
"""Of one prompt or answer. More is a broken file."""
MOST_SECONDS = 1e12
"""Between a trace's origin and a request: thirty thousand years. A float still has its milliseconds."""
HASH_BLOCK = 512
"""Prompt tokens of a hash block where nobody says otherwise: Mooncake's."""

INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


class Format(Protocol):
    """One file format."""

    name: str
    header: bool
    """Whether the first line names the columns."""

    def fits(self, first_line: str) -> bool:
        """Whether a file that begins with this line is of this format."""

    def scan(self, source: Path | BytesIO) -> pl.LazyFrame:
        """Return a file as columns, without reading it: ``arrival`` (seconds), ``prompt``, ``output`` (tokens).

        Where the format has them also ``hashes``, ``block_tokens``, ``group`` and ``session``. A value that
        cannot be read is null.
        """

    def check(self, line: str, header: str) -> None:
        """Raise ValueError with the reason if this line cannot be read; `header` is the one before all others."""


def check_tokens(name: str, value: str | int, *, least: int = 0) -> None:
    """Raise ValueError unless `value` is a number of tokens."""
    if not INTEGER.fullmatch(str(value)):
        raise ValueError(f"{name} is {value!r}, not a whole number")
    if not least <= int(value) <= MOST_TOKENS:
        raise ValueError(f"{name} is {value}, not between {least} and {MOST_TOKENS}")


def check_time(name: str, value: str | float, *, unit: float = 1.0) -> None:
    """Raise ValueError unless `value` is a time that a trace may have, in units of so many seconds."""
    if not NUMBER.fullmatch(str(value)):
        raise ValueError(f"{name} is {value!r}, not a number")
    if abs(float(value)) * unit > MOST_SECONDS:
        raise ValueError(f"{name} is {value}, more than {MOST_SECONDS:g} s away")


def sound_rows(frame: pl.DataFrame) -> pl.Series:
    """Return for each row of a trace's columns whether all of it could be read, and is what a trace may have."""
    import polars as pl

    tokens = [pl.col(name).is_between(0, MOST_TOKENS) for name in ("prompt", "output")]
    in_time = pl.col("arrival").is_between(-MOST_SECONDS, MOST_SECONDS)
    sound = pl.all_horizontal(in_time, *tokens).fill_null(value=False)
    block = pl.lit(HASH_BLOCK)
    if "block_tokens" in frame.columns:
        block = pl.col("block_tokens").fill_null(HASH_BLOCK)
        sound &= block.is_between(1, MOST_TOKENS)
    if "hashes" in frame.columns:
        fits = (pl.col("hashes").list.len().cast(pl.Int64) - 1) * block < pl.max_horizontal(pl.col("prompt"), 1)
        unknown = pl.col("hashes").list.eval(pl.element().is_null()).list.any()
        sound &= fits.fill_null(value=True) & ~unknown.fill_null(value=False)
    return frame.select(sound=sound)["sound"]
