"""The settings file that ``pdd-device plan`` writes and ``pdd-device serve`` loads."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, StrictFloat, field_validator

from pdd_core.planner.json_file import JsonFile
from pdd_core.planner.lengths import OutputLengths
from pdd_core.planner.profiles import MeasuredCloud, MeasuredDevice

Share = Annotated[float, Field(gt=0, lt=1)]


class PlannedSettings(BaseModel):
    """Settings of ``serve``, under their names there. One that is absent is left as it is."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    plan: Literal["auto", "off", "handoff", "cloud", "device"] | None = None
    stall_probability: Share | None = None
    ttft_target_s: PositiveFloat | None = None
    must_begin_in_cloud: bool | None = None
    rate: Literal["auto", "unlimited"] | PositiveFloat | None = None
    decode_budget: Literal["auto"] | PositiveInt | None = None
    refine: str | StrictFloat | None = None
    kv: Literal["off", "auto", "always"] | None = None
    kv_price_per_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    gpu_hour_price: PositiveFloat | None = None
    n_ctx: Annotated[int, Field(ge=64)] | None = None


class PlanFile(JsonFile):
    """A recommendation, ready to be loaded. All parts may be absent, but what is there has to be known."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: PlannedSettings = PlannedSettings()
    device: MeasuredDevice | None = None
    """Where the calibration of the device begins."""
    cloud: MeasuredCloud | None = None
    """Where that of the cloud begins; its weight of prefill is the planner's."""
    lengths: dict[str, Any] | None = None
    """Distributions of answers' lengths, as `OutputLengths.as_json` writes them: where these begin."""
    plugin: dict[str, Any] = Field(default_factory=dict)
    """Settings for the cloud, as ``additional_config.pdd`` takes them; the device does not look at them."""

    @field_validator("lengths")
    @classmethod
    def _readable_lengths(cls, value: dict[str, Any] | None) -> dict[str, Any] | None:
        if value is not None:
            try:
                OutputLengths().restore(value)
            except (TypeError, KeyError, AttributeError, IndexError, OverflowError) as error:
                raise ValueError(f"no distributions of lengths: {type(error).__name__}: {error}") from error
        return value
