"""Reads a trace file: polars does it fast, and a second look finds the line that polars could not read."""

from __future__ import annotations

import csv
from codecs import BOM_UTF8
from io import BytesIO
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic_core import from_json

from pdd_core.errors import InvalidTrace
from pdd_lab.traces.formats import FORMATS
from pdd_lab.traces.malformed import decoded, filled_lines, find_malformed, line_of, sound_rows
from pdd_lab.traces.row import cells
from pdd_lab.traces.trace import Trace
from pdd_lab.traces.trace_options import AS_ITS_FIELDS_SAY

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from pdd_lab.traces.row import Row
    from pdd_lab.traces.trace_options import TraceOptions

_SHOWN = 300
"""Characters of the names of a file's fields that an error has."""


def load(path: Path, options: TraceOptions = AS_ITS_FIELDS_SAY) -> Trace:
    """Read `path` into a `Trace`. Only the columns of a trace are read, in batches.

    Args:
        path: the file.
        options: what its fields do not tell.

    Raises:
        InvalidTrace: the file cannot be read or is of no known format, or a line is malformed: its number and the
            reason are in the error.
        ConfigurationError: the format has none of what an option says.
    """
    kind = options.applied(_format(path, options.format))
    import polars as pl

    try:
        frame = kind.scan(_source(path, kind)).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        find_malformed(path, kind)
        raise InvalidTrace(path, None, f"cannot be read: {error}") from error
    if not sound_rows(frame, kind).all():
        find_malformed(path, kind)
        frame = frame.drop_nulls(["arrival", "prompt", "output"])  # what is left are empty lines
    if not frame.height:
        raise InvalidTrace(path, None, "has no requests")
    frame = _with_one_block(path, frame, kind)
    if options.block_size is None:
        _check_cover(path, frame, kind)
    trace = _trace(path.name, frame, kind)
    if not len(trace):
        raise InvalidTrace(path, None, f"none of its {frame.height:,} requests has both a prompt and an answer")
    return trace


def _format(path: Path, name: str | None) -> type[Row]:
    """Return the format that the file's first line fits, or the one called `name` if it does.

    Raises:
        InvalidTrace: it fits none of them; the reason has the fields that it has, and those that it would need.
    """
    number, line = _first_line(path)
    try:
        fields = _fields(line)
    except ValueError as error:
        raise InvalidTrace(path, number, str(error)) from error
    kinds = FORMATS.values() if name is None else (FORMATS[name],)
    header = not line.startswith("{")
    missing = []
    for kind in kinds:
        lacking = kind.lacks(fields)
        if name is None and kind.telling and not kind.telling & set(fields):
            lacking.append(" or ".join(sorted(kind.telling)))
        if not lacking and kind.header == header:
            return kind
        needs = f"needs {', '.join(lacking)} too" if lacking else "is written otherwise"
        missing.append(f"{kind.name}, {'CSV' if kind.header else 'JSON lines'}, {needs}")
    shown = ", ".join(fields)
    found = repr(shown if len(shown) <= _SHOWN else shown[:_SHOWN] + "...")
    what = "of no known format" if name is None else f"not of the format {name}"
    raise InvalidTrace(path, number, f"{what}: it has the fields {found}, and {'; '.join(missing)}")


def _first_line(path: Path) -> tuple[int, str]:
    try:
        with path.open("rb") as file:
            number, line = next(filled_lines(file), (1, b""))
    except OSError as error:
        raise InvalidTrace(path, None, f"cannot be read: {error}") from error
    if not line:
        raise InvalidTrace(path, None, "is empty")
    try:
        return number, decoded(line).strip()
    except ValueError as error:
        raise InvalidTrace(path, number, str(error)) from error


def _fields(line: str) -> list[str]:
    """Return the names of a file's fields, from its first line.

    Raises:
        ValueError: it is neither a JSON object nor a line of CSV.
    """
    try:
        if not line.startswith("{"):
            return cells(line)
        return list(from_json(line))
    except csv.Error as error:
        raise ValueError(str(error)) from error
    except ValueError as error:
        raise ValueError(f"not JSON: {error}".replace("line 1 column", "character")) from error


def _source(path: Path, kind: type[Row]) -> Path | BytesIO:
    """Return what polars is to read: a byte order mark before JSON is more than it can take."""
    if not kind.header:
        with path.open("rb") as file:
            if file.read(len(BOM_UTF8)) == BOM_UTF8:
                return BytesIO(file.read())
    return path


def _with_one_block(path: Path, frame: pl.DataFrame, kind: type[Row]) -> pl.DataFrame:
    """Return the rows with the size of the hash blocks in all of them, which must be one."""
    import polars as pl

    if "hashes" not in frame.columns:
        return frame
    default = pl.lit(kind.hash_block, dtype=pl.Int64)
    if "block_tokens" not in frame.columns:
        return frame.with_columns(block_tokens=default)
    hashed = pl.col("hashes").list.len() > 0
    told = frame.select(pl.coalesce(pl.col("block_tokens"), pl.when(hashed).then(default)))["block_tokens"]
    known = told.drop_nulls()
    block = known[0] if len(known) else kind.hash_block
    others = (told != block).fill_null(value=False).arg_true()
    if len(others):
        reason = f"block_tokens is {told[others[0]]} where it was {block}: it must be the same in every line"
        raise InvalidTrace(path, line_of(path, others[0]), reason)
    return frame.with_columns(block_tokens=pl.lit(block, dtype=pl.Int64))


def _check_cover(path: Path, frame: pl.DataFrame, kind: type[Row]) -> None:
    """Refuse a file whose hashes would be of less than half of its prompts: its blocks are larger."""
    import polars as pl

    if not getattr(kind, "hashes_all", False):
        return
    hashed = frame.select("prompt", "block_tokens", blocks=pl.col("hashes").list.len()).filter(
        pl.col("blocks") > 0
    )
    prompts, covered = hashed["prompt"].sum(), (hashed["blocks"] * hashed["block_tokens"]).sum()
    if 2 * covered < prompts:
        raise InvalidTrace(
            path,
            None,
            f"its hash_ids, read as {kind.name}'s blocks of {kind.hash_block} tokens, are {covered:,} of "
            f"{prompts:,} prompt tokens: --block-size says another size",
        )


def _trace(name: str, frame: pl.DataFrame, kind: type[Row]) -> Trace:
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
        read_as=kind.described(block=more.get("block_tokens")),
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
