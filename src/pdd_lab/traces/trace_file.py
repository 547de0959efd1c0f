"""Reads a trace file: polars does it fast, and a second look finds the line that polars could not read."""

from __future__ import annotations

from codecs import BOM_UTF8
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.errors import InvalidTrace
from pdd_lab.traces.formats import FORMATS
from pdd_lab.traces.malformed import decoded, filled_lines, find_malformed, line_of, sound_rows
from pdd_lab.traces.trace import HASH_BLOCK, Trace

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from pdd_lab.traces.row import Row

_SHOWN = 60


def load(path: Path, *, format: str | None = None) -> Trace:  # noqa: A002 - the flag's name
    """Read `path` into a `Trace`. Only the columns of a trace are read, in batches.

    Args:
        path: the file.
        format: one of `FORMATS`; None finds out from the first line.

    Raises:
        InvalidTrace: the file cannot be read or is of no known format, or a line is malformed: its number and the
            reason are in the error.
    """
    first_line = _first_line(path)
    kind = FORMATS[format] if format else detect(first_line, path)
    if format and not kind.fits(first_line):
        raise InvalidTrace(path, 1, f"not of the format {format}: {_short(first_line)}")
    import polars as pl

    try:
        frame = kind.scan(_source(path, kind)).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        find_malformed(path, kind)
        raise InvalidTrace(path, None, f"cannot be read: {error}") from error
    if not sound_rows(frame).all():
        find_malformed(path, kind)
        frame = frame.drop_nulls(["arrival", "prompt", "output"])  # what is left are empty lines
    if not frame.height:
        raise InvalidTrace(path, None, "has no requests")
    if "block_tokens" in frame.columns:
        frame = _with_one_block(path, frame)
    trace = _trace(path.name, frame)
    if not len(trace):
        raise InvalidTrace(path, None, f"none of its {frame.height:,} requests has both a prompt and an answer")
    return trace


def detect(first_line: str, path: Path) -> type[Row]:
    """Return the format of a file that begins with this line.

    Raises:
        InvalidTrace: it is none of `FORMATS`.
    """
    for kind in FORMATS.values():
        if kind.fits(first_line):
            return kind
    raise InvalidTrace(path, 1, f"of no known format ({', '.join(FORMATS)}): {_short(first_line)}")


def _first_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            number, line = next(filled_lines(file), (None, b""))
    except OSError as error:
        raise InvalidTrace(path, None, f"cannot be read: {error}") from error
    if not line:
        raise InvalidTrace(path, None, "is empty")
    try:
        return decoded(line).strip()
    except ValueError as error:
        raise InvalidTrace(path, number, str(error)) from error


def _source(path: Path, kind: type[Row]) -> Path | BytesIO:
    """Return what polars is to read: a byte order mark before JSON is more than it can take."""
    if not kind.header:
        with path.open("rb") as file:
            if file.read(len(BOM_UTF8)) == BOM_UTF8:
                return BytesIO(file.read())
    return path


def _with_one_block(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    """Return the rows with the size of the hash blocks in all of them, which must be one."""
    import polars as pl

    hashed = pl.col("hashes").list.len() > 0
    told = frame.select(
        pl.coalesce(pl.col("block_tokens"), pl.when(hashed).then(pl.lit(HASH_BLOCK, dtype=pl.Int64)))
    )["block_tokens"]
    known = told.drop_nulls()
    block = known[0] if len(known) else HASH_BLOCK
    others = (told != block).fill_null(value=False).arg_true()
    if len(others):
        reason = f"block_tokens is {told[others[0]]} where it was {block}: it must be the same in every line"
        raise InvalidTrace(path, line_of(path, others[0]), reason)
    return frame.with_columns(block_tokens=pl.lit(block, dtype=pl.Int64))


def _short(line: str) -> str:
    return repr(line if len(line) <= _SHOWN else line[:_SHOWN] + "...")


def _trace(name: str, frame: pl.DataFrame) -> Trace:
    import polars as pl

    served = frame.filter((pl.col("prompt") > 0) & (pl.col("output") > 0))
    dropped = frame.height - served.height
    if not served["arrival"].is_sorted():
        served = served.sort("arrival", maintain_order=True)
    arrival = served["arrival"].to_numpy()
    more: dict[str, Any] = {}
    if "hashes" in served.columns and served["hashes"].list.len().fill_null(0).sum():
        counts = served["hashes"].list.len().fill_null(0).to_numpy()
        more["hash_offsets"] = np.fromiter(chain((0,), np.cumsum(counts)), dtype=np.int64, count=len(counts) + 1)
        more["hash_values"] = served["hashes"].explode(empty_as_null=False, keep_nulls=False).to_numpy()
        if "block_tokens" in served.columns:
            more["block_tokens"] = served["block_tokens"][0]
    if "group" in served.columns and served["group"].null_count() < served.height:
        more["groups"], more["group_names"] = _codes(served["group"].fill_null(""))
    if "session" in served.columns and served["session"].null_count() < served.height:
        codes, _ = _codes(served["session"].fill_null(""))
        more["sessions"] = np.where(served["session"].is_null().to_numpy(), -1, codes)
    return Trace(
        name=name,
        arrival_s=np.ascontiguousarray(arrival - arrival[0] if len(arrival) else arrival, dtype=np.float64),
        prompt_tokens=np.ascontiguousarray(served["prompt"].to_numpy(), dtype=np.int64),
        output_tokens=np.ascontiguousarray(served["output"].to_numpy(), dtype=np.int64),
        dropped=dropped,
        **more,
    )


def _codes(texts: pl.Series) -> tuple[Any, tuple[str, ...]]:
    """Return each text's number, in the order of appearance, and the texts by number."""
    import polars as pl

    names = texts.unique(maintain_order=True)
    numbers = pl.DataFrame({"name": names, "code": np.arange(len(names), dtype=np.int64)})
    joined = texts.to_frame("name").join(numbers, on="name", how="left", maintain_order="left")
    return joined["code"].to_numpy(), tuple(names)
