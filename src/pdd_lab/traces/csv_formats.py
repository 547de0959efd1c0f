"""Traces as CSV: Azure's and BurstGPT's columns."""

from __future__ import annotations

import csv
from datetime import datetime
from typing import TYPE_CHECKING

from pdd_lab.traces.columns import check_time, check_tokens

if TYPE_CHECKING:
    from io import BytesIO
    from pathlib import Path

    import polars as pl

_UTC = "+00:00"


def _fields(line: str) -> list[str]:
    return next(csv.reader([line], strict=True), [])


def _row(line: str, header: str) -> dict[str, str]:
    try:
        names, values = _fields(header), _fields(line)
    except csv.Error as error:
        raise ValueError(str(error)) from error
    if len(names) != len(values):
        raise ValueError(f"{len(values)} fields where the header has {len(names)}")
    return dict(zip(names, values, strict=True))


def _text_columns(source: Path | BytesIO) -> pl.LazyFrame:
    import polars as pl

    return pl.scan_csv(source, infer_schema=False)


def _tokens(name: str) -> pl.Expr:
    import polars as pl

    return pl.col(name).cast(pl.Int64, strict=False)


class AzureCSV:
    """``TIMESTAMP, ContextTokens, GeneratedTokens``, as in Azure/AzurePublicDataset (2023 and 2024)."""

    name = "azure"
    header = True

    def fits(self, first_line: str) -> bool:
        """Look for the column names."""
        return {"TIMESTAMP", "ContextTokens", "GeneratedTokens"} <= set(first_line.split(","))

    def scan(self, source: Path | BytesIO) -> pl.LazyFrame:
        """Timestamps have up to seven decimals, of which microseconds are kept; some files add ``+00:00``."""
        import polars as pl

        time = pl.col("TIMESTAMP").str.strip_suffix(_UTC)
        time = time.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False)
        return _text_columns(source).select(
            arrival=time.dt.epoch("us") / 1e6, prompt=_tokens("ContextTokens"), output=_tokens("GeneratedTokens")
        )

    def check(self, line: str, header: str) -> None:
        """Raise ValueError with the reason if this line cannot be read."""
        row = _row(line, header)
        whole, _, fraction = row["TIMESTAMP"].removesuffix(_UTC).partition(".")
        try:
            datetime.strptime(whole, "%Y-%m-%d %H:%M:%S")
        except ValueError:
            whole = ""
        if not whole or (fraction and not fraction.isdecimal()) or not row["TIMESTAMP"].isascii():
            raise ValueError(f"TIMESTAMP is {row['TIMESTAMP']!r}, not like 2023-11-16 18:15:46.68")
        for name in ("ContextTokens", "GeneratedTokens"):
            check_tokens(name, row[name])


class BurstGPT:
    """``Timestamp, [Session ID,] Model, Request tokens, Response tokens, ...``, as in HPMLL/BurstGPT."""

    name = "burstgpt"
    header = True

    def fits(self, first_line: str) -> bool:
        """Look for the column names."""
        return {"Timestamp", "Model", "Request tokens", "Response tokens"} <= set(first_line.split(","))

    def scan(self, source: Path | BytesIO) -> pl.LazyFrame:
        """Seconds from an origin of the file's own; the model is the group. Older files have no sessions."""
        import polars as pl

        columns = {
            "arrival": pl.col("Timestamp").cast(pl.Float64, strict=False),
            "prompt": _tokens("Request tokens"),
            "output": _tokens("Response tokens"),
            "group": pl.col("Model"),
        }
        frame = _text_columns(source)
        if "Session ID" in frame.collect_schema().names():
            columns["session"] = pl.col("Session ID")
        return frame.select(**columns)

    def check(self, line: str, header: str) -> None:
        """Raise ValueError with the reason if this line cannot be read."""
        row = _row(line, header)
        check_time("Timestamp", row["Timestamp"])
        for name in ("Request tokens", "Response tokens"):
            check_tokens(name, row[name])
