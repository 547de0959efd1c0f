"""Reads a trace file: polars does it fast, and a slow second look finds the line that polars could not read."""

from __future__ import annotations

from itertools import chain
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from pdd_core.errors import InvalidTrace
from pdd_core.traces.columns import MOST_TOKENS, Format
from pdd_core.traces.csv_formats import AzureCSV, BurstGPT
from pdd_core.traces.jsonl_formats import MOONCAKE_BLOCK, Mooncake, OwnJSONL
from pdd_core.traces.trace import Trace

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import polars as pl

FORMATS: Mapping[str, Format] = MappingProxyType(
    {one.name: one for one in (AzureCSV(), Mooncake(), BurstGPT(), OwnJSONL())}
)
"""Formats by name."""
_LONGEST_FIRST_LINE = 1 << 24
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
        frame = kind.scan(path).collect(engine="streaming")
    except pl.exceptions.PolarsError as error:
        _find_malformed(path, kind, first_line)
        raise InvalidTrace(path, None, f"cannot be read: {error}") from error
    if _doubtful(frame):
        _find_malformed(path, kind, first_line)
        frame = frame.drop_nulls(["arrival", "prompt", "output"])  # what is left are empty lines
    if not frame.height:
        raise InvalidTrace(path, None, "has no requests")
    trace = _trace(path.name, frame)
    if not len(trace):
        raise InvalidTrace(path, None, f"none of its {frame.height:,} requests has both a prompt and an answer")
    return trace


def detect(first_line: str, path: Path) -> Format:
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
        with path.open(encoding="utf-8-sig") as file:
            while line := file.readline(_LONGEST_FIRST_LINE):
                if line.strip():
                    return line.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidTrace(path, None, f"cannot be read: {error}") from error
    raise InvalidTrace(path, None, "is empty")


def _doubtful(frame: pl.DataFrame) -> bool:
    """Whether there is a value that could not be read, or one that no trace has."""
    import polars as pl

    tokens = [pl.col(name).is_between(0, MOST_TOKENS) for name in ("prompt", "output")]
    sound = pl.all_horizontal(pl.col("arrival").is_finite(), *tokens).fill_null(value=False)
    if "hashes" in frame.columns:
        block = (
            pl.col("block_tokens").fill_null(MOONCAKE_BLOCK) if "block_tokens" in frame.columns else MOONCAKE_BLOCK
        )
        fits = (pl.col("hashes").list.len().cast(pl.Int64) - 1) * block < pl.max_horizontal(pl.col("prompt"), 1)
        sound &= fits.fill_null(value=True) & ~pl.col("hashes").list.eval(
            pl.element().is_null()
        ).list.any().fill_null(value=False)
    if "block_tokens" in frame.columns and frame["block_tokens"].drop_nulls().n_unique() > 1:
        return True
    return not frame.select(sound.all()).item()


def _find_malformed(path: Path, kind: Format, first_line: str) -> None:
    """Raise for the first malformed line, if there is one."""
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        numbered = ((number, line.strip()) for number, line in enumerate(file, start=1))
        filled = ((number, line) for number, line in numbered if line)
        header = next(filled, None) if kind.header else None
        first = header[1] if header else first_line
        for number, line in filled:
            try:
                kind.check(line, first)
            except ValueError as error:
                raise InvalidTrace(path, number, str(error)) from error


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
            more["block_tokens"] = served["block_tokens"].drop_nulls().first() or MOONCAKE_BLOCK
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
