"""Finds the first malformed line of a trace file: polars says where it is, and only that line is looked at."""

from __future__ import annotations

from bisect import bisect_left
from codecs import BOM_UTF8
from io import BytesIO
from itertools import islice
from typing import TYPE_CHECKING, BinaryIO

from pdd_core.errors import InvalidTrace
from pdd_lab.traces.row import MOST_SECONDS
from pdd_lab.traces.trace import MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    import polars as pl

    from pdd_lab.traces.row import Row

_AT_ONCE = 20_000
"""Lines that polars reads at a time."""


def filled_lines(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield each line that is not blank, and its number from 1, without its end and without a byte order mark."""
    for number, line in enumerate(file, start=1):
        text = (line.removeprefix(BOM_UTF8) if number == 1 else line).rstrip(b"\r\n")
        if text.strip():
            yield number, text


def decoded(line: bytes) -> str:
    """Return a line's text.

    Raises:
        ValueError: it is not UTF-8.
    """
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = line[error.start]
        raise ValueError(f"not UTF-8: byte 0x{byte:02x} at position {error.start + 1}") from error


def find_malformed(path: Path, kind: type[Row]) -> None:
    """Pass if every line that is not blank can be read.

    Raises:
        InvalidTrace: for the first one that cannot.
    """
    with path.open("rb") as file:
        lines = filled_lines(file)
        header = next(lines)[1] if kind.header else b""
        while some := list(islice(lines, _AT_ONCE)):
            if not _sound(some, kind, header):
                # as many lines as there can be from the first on, and the next one is malformed
                sound = bisect_left(range(1, len(some)), True, key=lambda n: not _sound(some[:n], kind, header))
                _raise(path, *some[sound], kind, header)


def sound_rows(frame: pl.DataFrame, kind: type[Row]) -> pl.Series:
    """Return for each row of a trace's columns whether all of it could be read, and is what a trace may have."""
    import polars as pl

    tokens = [pl.col(name).is_between(0, MOST_TOKENS) for name in ("prompt", "output")]
    in_time = pl.col("arrival").is_between(-MOST_SECONDS, MOST_SECONDS)
    sound = pl.all_horizontal(in_time, *tokens).fill_null(value=False)
    block = pl.lit(kind.hash_block)
    if "block_tokens" in frame.columns:
        block = pl.col("block_tokens").fill_null(kind.hash_block)
        sound &= block.is_between(1, MOST_TOKENS)
    if "hashes" in frame.columns:
        fits = (pl.col("hashes").list.len().cast(pl.Int64) - 1) * block < pl.max_horizontal(pl.col("prompt"), 1)
        unknown = pl.col("hashes").list.eval(pl.element().is_null()).list.any()
        sound &= fits.fill_null(value=True) & ~unknown.fill_null(value=False)
    return frame.select(sound=sound)["sound"]


def line_of(path: Path, row: int) -> int:
    """Return the number of the line that holds this row, from 0; blank lines and a header are none."""
    with path.open("rb") as file:
        return next(islice(filled_lines(file), row, None))[0]


def _sound(lines: Sequence[tuple[int, bytes]], kind: type[Row], header: bytes) -> bool:
    import polars as pl

    text = b"\n".join([*([header] if kind.header else []), *(line for _, line in lines)])
    try:
        frame = kind.scan(BytesIO(text)).collect()
    except pl.exceptions.PolarsError:
        return False
    return frame.height == len(lines) and bool(sound_rows(frame, kind).all())


def _raise(path: Path, number: int, line: bytes, kind: type[Row], header: bytes) -> None:
    try:
        kind.check(decoded(line), decoded(header))
    except ValueError as error:
        raise InvalidTrace(path, number, str(error)) from error
    raise InvalidTrace(path, number, "cannot be read")
