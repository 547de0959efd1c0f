"""Traces as JSON lines: Mooncake's fields and our own."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pdd_lab.traces.columns import HASH_BLOCK, INTEGER, check_time, check_tokens

if TYPE_CHECKING:
    from io import BytesIO
    from pathlib import Path

    import polars as pl

_MILLISECOND = 1e-3


def _object(line: str) -> dict[str, Any]:
    try:
        value = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.colno}") from error
    except RecursionError as error:
        raise ValueError("not JSON that anybody could read: nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")  # noqa: TRY004 - the reason of a malformed line
    return value


def _check_numbers(row: dict[str, Any], time: str, tokens: tuple[str, ...], *, unit: float = 1.0) -> None:
    """Raise ValueError unless all these are there, as JSON's own numbers: text that looks like one is none."""
    for name in (time, *tokens):
        if row.get(name) is None:
            raise ValueError(f"{name} is missing")
    if type(row[time]) not in (int, float):
        raise ValueError(f"{time} is {row[time]!r}, not a number")
    check_time(time, row[time], unit=unit)
    for name in tokens:
        _check_whole(name, row[name])


def _check_whole(name: str, value: object, *, least: int = 0) -> None:
    if type(value) is not int:
        raise ValueError(f"{name} is {value!r}, not a whole number")
    check_tokens(name, value, least=least)


def _check_hashes(name: str, row: dict[str, Any], tokens: int, block: int) -> None:
    hashes = row.get(name)
    if hashes is None:
        return
    if not isinstance(hashes, list) or not all(type(one) is int and INTEGER.fullmatch(str(one)) for one in hashes):
        raise ValueError(f"{name} is not a list of whole numbers")
    if (len(hashes) - 1) * block >= max(tokens, 1):
        raise ValueError(f"{name} has {len(hashes)} blocks of {block} tokens for a prompt of {tokens}")


class Mooncake:
    """``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``, as in kvcache-ai/Mooncake."""

    name = "mooncake"
    header = False

    def fits(self, first_line: str) -> bool:
        """Look for the field names."""
        return first_line.startswith("{") and '"input_length"' in first_line

    def scan(self, source: Path | BytesIO) -> pl.LazyFrame:
        """Entries of `hash_ids` are of 512 tokens."""
        import polars as pl

        schema = {
            "timestamp": pl.Float64(),
            "input_length": pl.Int64(),
            "output_length": pl.Int64(),
            "hash_ids": pl.List(pl.Int64()),
        }
        return pl.scan_ndjson(source, schema=schema).select(
            arrival=pl.col("timestamp") / 1000,
            prompt=pl.col("input_length"),
            output=pl.col("output_length"),
            hashes=pl.col("hash_ids"),
        )

    def check(self, line: str, header: str) -> None:  # noqa: ARG002 - part of the protocol
        """Raise ValueError with the reason if this line cannot be read."""
        row = _object(line)
        _check_numbers(row, "timestamp", ("input_length", "output_length"), unit=_MILLISECOND)
        _check_hashes("hash_ids", row, row["input_length"], HASH_BLOCK)


class OwnJSONL:
    """``arrival_s``, ``prompt_tokens``, ``output_tokens``, and what else is known: see docs/plan.md."""

    name = "jsonl"
    header = False

    def fits(self, first_line: str) -> bool:
        """Look for the field names."""
        return first_line.startswith("{") and '"prompt_tokens"' in first_line

    def scan(self, source: Path | BytesIO) -> pl.LazyFrame:
        """Optional fields may be missing in some lines, or in all."""
        import polars as pl

        schema = {
            "arrival_s": pl.Float64(),
            "prompt_tokens": pl.Int64(),
            "output_tokens": pl.Int64(),
            "prefix_hashes": pl.List(pl.Int64()),
            "block_tokens": pl.Int64(),
            "group": pl.String(),
            "session": pl.String(),
        }
        return pl.scan_ndjson(source, schema=schema).rename(
            {
                "arrival_s": "arrival",
                "prompt_tokens": "prompt",
                "output_tokens": "output",
                "prefix_hashes": "hashes",
            }
        )

    def check(self, line: str, header: str) -> None:  # noqa: ARG002 - part of the protocol
        """Raise ValueError with the reason if this line cannot be read."""
        row = _object(line)
        _check_numbers(row, "arrival_s", ("prompt_tokens", "output_tokens"))
        block = row.get("block_tokens")
        if block is not None:
            _check_whole("block_tokens", block, least=1)
        _check_hashes("prefix_hashes", row, row["prompt_tokens"], block or HASH_BLOCK)
