"""The trace formats: Azure's and BurstGPT's CSV, Mooncake's JSON lines and our own."""

from __future__ import annotations

import re
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field

from pdd_lab.traces.row import CSVRow, JSONRow, Milliseconds, Row, Seconds, Tokens, Whole
from pdd_lab.traces.trace import HASH_BLOCK, MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

_UTC = "+00:00"
_TIMESTAMP = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2} [0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]*)?(\+00:00)?")


def _timestamp(text: str) -> datetime:
    try:
        if _TIMESTAMP.fullmatch(text):
            return datetime.strptime(text[:19], "%Y-%m-%d %H:%M:%S")
    except ValueError:
        pass
    raise ValueError("not like 2023-11-16 18:15:46.68")


class AzureCSV(CSVRow):
    """``TIMESTAMP, ContextTokens, GeneratedTokens``, as in Azure/AzurePublicDataset (2023 and 2024)."""

    arrival: Annotated[datetime, BeforeValidator(_timestamp)] = Field(alias="TIMESTAMP")
    prompt: Tokens = Field(alias="ContextTokens")
    output: Tokens = Field(alias="GeneratedTokens")

    @classmethod
    def seconds(cls, text: pl.Expr) -> pl.Expr:
        """Timestamps have up to seven decimals; microseconds are kept. Some files add ``+00:00``."""
        time = text.str.strip_suffix(_UTC)
        return time.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False).dt.epoch("us") / 1e6


class BurstGPT(CSVRow):
    """``Timestamp, [Session ID,] Model, Request tokens, Response tokens, ...``, as in HPMLL/BurstGPT.

    Seconds from an origin of the file's own; the model is the group. Older files have no sessions.
    """

    arrival: Seconds = Field(alias="Timestamp")
    prompt: Tokens = Field(alias="Request tokens")
    output: Tokens = Field(alias="Response tokens")
    group: Any = Field(alias="Model")
    session: Any = Field(None, alias="Session ID")


class Mooncake(JSONRow):
    """``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``, as in kvcache-ai/Mooncake."""

    units_per_s = 1000.0

    arrival: Milliseconds = Field(alias="timestamp")
    prompt: Tokens = Field(alias="input_length")
    output: Tokens = Field(alias="output_length")
    hashes: list[Whole] | None = Field(None, alias="hash_ids")


class OwnJSONL(JSONRow):
    """``arrival_s``, ``prompt_tokens``, ``output_tokens``, and what else is known: see docs/plan.md."""

    arrival: Seconds = Field(alias="arrival_s")
    prompt: Tokens = Field(alias="prompt_tokens")
    output: Tokens = Field(alias="output_tokens")
    hashes: list[Whole] | None = Field(None, alias="prefix_hashes")
    block_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    group: Any = None
    session: Any = None

    @property
    def block(self) -> int:
        """Prompt tokens of a hash block."""
        return self.block_tokens or HASH_BLOCK


FORMATS: Mapping[str, type[Row]] = MappingProxyType(
    {"azure": AzureCSV, "mooncake": Mooncake, "burstgpt": BurstGPT, "jsonl": OwnJSONL}
)
"""Formats by name."""
