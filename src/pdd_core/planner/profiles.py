"""Profile files: what a device or a cloud can do, as measured by ``pdd-device bench``."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from pdd_core.errors import ConfigurationError, SchemaVersionError
from pdd_core.handoff import SchemaVersion

if TYPE_CHECKING:
    from pathlib import Path

PROFILE_VERSION = "1.0"

NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Speed = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class RatePoint(BaseModel):
    """A speed at one length."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    at: NotNegative
    """Tokens in the context."""
    value: Speed
    """Tokens per second."""


class _Profile(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    schema_version: SchemaVersion = PROFILE_VERSION
    name: str
    """What it is a profile of, for people."""
    model: str
    """The model that was measured."""

    @classmethod
    def load(cls, file: Path) -> Self:
        """Read a profile.

        Raises:
            ConfigurationError: `file` cannot be read, or a field cannot be used; the message names both.
        """
        try:
            return cls.model_validate(json.loads(file.read_text("utf-8")))
        except ValidationError as error:
            problems = "; ".join(
                f"{'.'.join(map(str, one['loc'])) or 'the file'}: {one['msg']}" for one in error.errors()
            )
            raise ConfigurationError(f"{file} is no {cls.__name__}: {problems}") from error
        except (OSError, ValueError, SchemaVersionError) as error:
            raise ConfigurationError(f"{file} cannot be read: {error}") from error

    def save(self, file: Path) -> None:
        """Write the profile.

        Raises:
            ConfigurationError: `file` cannot be written.
        """
        try:
            file.write_text(self.model_dump_json(indent=2) + "\n", "utf-8")
        except OSError as error:
            raise ConfigurationError(f"{file} cannot be written: {error}") from error


class DeviceProfile(_Profile):
    """A device's engine: speeds over the length of what its context holds."""

    prefill_tps: Annotated[tuple[RatePoint, ...], Field(min_length=1)]
    """Prompt tokens per second, `at` tokens in the context. Linear between the points, constant outside."""
    decode_tps: Annotated[tuple[RatePoint, ...], Field(min_length=1)]
    """Answer tokens per second, `at` tokens in the context."""
    spread: NotNegative = 0.1
    """Relative standard deviation of both speeds from request to request."""
    n_ctx: PositiveInt
    """Tokens that the context holds."""

    @model_validator(mode="after")
    def _rising(self) -> Self:
        for name in ("prefill_tps", "decode_tps"):
            lengths = [point.at for point in getattr(self, name)]
            if any(later <= earlier for earlier, later in pairwise(lengths)):
                raise ValueError(f"{name} must have rising lengths `at`")
        return self


class CloudProfile(_Profile):
    """A cloud's engine: what a step costs, what it holds at a time, and how far away it is.

    One step takes base_s + per_prefill_token_s * prefill tokens + per_sequence_s * decoding sequences +
    per_context_token_s * the tokens that those hold in the KV cache.
    """

    base_s: NotNegative
    per_prefill_token_s: NotNegative
    per_sequence_s: NotNegative
    per_context_token_s: NotNegative
    per_request_s: NotNegative = 0.0
    """What API server and scheduler need for one request, one after the other."""
    kv_tokens: PositiveInt
    """Tokens that the KV cache holds."""
    max_num_seqs: PositiveInt
    max_num_batched_tokens: PositiveInt
    block_size: PositiveInt = 16
    """Tokens of a block of the KV cache."""
    rtt_s: NotNegative
    """One round trip between device and cloud."""
    jitter_s: NotNegative
    """Standard deviation of `rtt_s`."""
    refines: bool = False
    """Whether the cloud makes refined prompts."""


def rate_at(points: tuple[RatePoint, ...], length: float) -> float:
    """Return the speed at `length` tokens in the context: linear between the points, constant outside."""
    return float(np.interp(length, [point.at for point in points], [point.value for point in points]))


def mean_rate(points: tuple[RatePoint, ...], begin: float, end: float) -> float:
    """Return the speed at which tokens `begin` to `end` are processed: their number over the time they take."""
    if end <= begin:
        return rate_at(points, begin)
    inside = [point.at for point in points if begin < point.at < end]
    lengths = np.unique(np.concatenate([np.linspace(begin, end, 17), inside]))
    per_token = 1.0 / np.interp(lengths, [point.at for point in points], [point.value for point in points])
    seconds = float(np.sum(np.diff(lengths) * (per_token[1:] + per_token[:-1]) / 2))
    return (end - begin) / seconds
