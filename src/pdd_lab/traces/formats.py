"""The trace formats: Azure's and BurstGPT's CSV, JSON lines of Bailian, Dynamo and Mooncake, and our own."""

from __future__ import annotations

import re
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field, model_validator

from pdd_lab.traces.row import CSVRow, JSONRow, Moment, Row, Tokens, Whole
from pdd_lab.traces.trace import HASH_BLOCK, MOST_TOKENS

if TYPE_CHECKING:
    from collections.abc import Mapping

    import polars as pl

_DATE = r"([0-9]{4}-[0-9]{2}-[0-9]{2})[ T]([0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]*)?)"
_ZONE = r"(?:Z|([+-])([01][0-9]|2[0-3]):?([0-5][0-9]))?"
_TIMESTAMP = f"^{_DATE}{_ZONE}$"


def _timestamp(text: str) -> datetime:
    try:
        if found := re.fullmatch(_TIMESTAMP, text):
            return datetime.strptime(f"{found[1]} {found[2][:8]}", "%Y-%m-%d %H:%M:%S")
    except ValueError:
        pass
    raise ValueError("not like 2023-11-16 18:15:46.68 or 2024-05-10 00:00:00.01+00:00")


class AzureCSV(CSVRow):
    """``TIMESTAMP, ContextTokens, GeneratedTokens``, as in Azure/AzurePublicDataset (2023 and 2024)."""

    name = "azure"
    units_per_s = None

    arrival: Annotated[datetime, BeforeValidator(_timestamp)] = Field(alias="TIMESTAMP")
    prompt: Tokens = Field(alias="ContextTokens")
    output: Tokens = Field(alias="GeneratedTokens")

    @classmethod
    def seconds(cls, text: pl.Expr) -> pl.Expr:
        """Timestamps have up to seven decimals; microseconds are kept. One without a zone is taken as UTC."""
        import polars as pl

        parts = text.str.extract_groups(_TIMESTAMP).struct
        local = pl.concat_str(parts[0], parts[1], separator=" ")
        at = local.str.to_datetime("%Y-%m-%d %H:%M:%S%.f", time_unit="us", strict=False).dt.epoch("us") / 1e6
        hours, minutes = (parts[index].cast(pl.Float64).fill_null(0) for index in (3, 4))
        east = 3600 * hours + 60 * minutes
        return at - pl.when(parts[2] == "-").then(-east).otherwise(east)


class BurstGPT(CSVRow):
    """``Timestamp, [Session ID,] Model, Request tokens, Response tokens, ...``, as in HPMLL/BurstGPT.

    Seconds from an origin of the file's own; the model is the group. Older files have no sessions.
    """

    name = "burstgpt"

    arrival: Moment = Field(alias="Timestamp")
    prompt: Tokens = Field(alias="Request tokens")
    output: Tokens = Field(alias="Response tokens")
    group: Any = Field(alias="Model")
    session: Any = Field(None, alias="Session ID")


class Mooncake(JSONRow):
    """``timestamp`` (ms), ``input_length``, ``output_length``, ``hash_ids``, as in kvcache-ai/Mooncake."""

    name = "mooncake"
    units_per_s = 1e3
    hash_block = HASH_BLOCK
    hashes_all = True

    arrival: Moment = Field(alias="timestamp")
    prompt: Tokens = Field(alias="input_length")
    output: Tokens = Field(alias="output_length")
    hashes: list[Whole] | None = Field(None, alias="hash_ids")


class Dynamo(Mooncake):
    """Mooncake's fields and ``session_id``, ``request_id`` or ``delay``, as ai-dynamo/dynamo's tools write them.

    Its exporters make blocks of 64 tokens unless they are told another size.
    """

    name = "dynamo"
    hash_block = 64
    telling = frozenset({"session_id", "request_id", "delay"})

    session: Any = Field(None, alias="session_id")

    @model_validator(mode="before")
    @classmethod
    def _has_a_time(cls, data: Any) -> Any:
        if isinstance(data, dict) and data.get("timestamp") is None and data.get("delay") is not None:
            raise ValueError(
                "it has a delay after the answer before in place of a timestamp: "
                "only requests whose times are known can be replayed"
            )
        return data


class Bailian(Mooncake):
    """Mooncake's fields and ``chat_id``, as in alibaba-edu/qwen-bailian-usagetraces-anon; the type is the group.

    ``timestamp`` is in seconds, and a hash is of 16 tokens.
    """

    name = "bailian"
    units_per_s = 1.0
    hash_block = 16
    telling = frozenset({"chat_id", "parent_chat_id"})

    group: Any = Field(None, alias="type")


class OwnJSONL(JSONRow):
    """``arrival_s``, ``prompt_tokens``, ``output_tokens``, and what else is known: see docs/plan.md."""

    name = "jsonl"
    hash_block = HASH_BLOCK

    arrival: Moment = Field(alias="arrival_s")
    prompt: Tokens = Field(alias="prompt_tokens")
    output: Tokens = Field(alias="output_tokens")
    hashes: list[Whole] | None = Field(None, alias="prefix_hashes")
    block_tokens: Annotated[int, Field(ge=1, le=MOST_TOKENS)] | None = None
    group: Any = None
    session: Any = None

    @property
    def block(self) -> int:
        """Prompt tokens of a hash block."""
        return self.block_tokens or super().block


FORMATS: Mapping[str, type[Row]] = MappingProxyType(
    {kind.name: kind for kind in (AzureCSV, Bailian, Dynamo, Mooncake, BurstGPT, OwnJSONL)}
)
"""Formats by name. Where a file's fields fit several, it is of the first."""
