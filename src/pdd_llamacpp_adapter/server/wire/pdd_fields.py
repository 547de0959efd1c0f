"""The request's field ``pdd``: what a client asks of this server beyond OpenAI's and vLLM's fields."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict
from pydantic_core import PydanticCustomError

from pdd_core.errors import ConfigurationError
from pdd_core.refinement.target import FORMS, RefineTarget
from pdd_llamacpp_adapter.request import OwnSettings
from pdd_llamacpp_adapter.server.wire.bodies import WireModel

_LEAST_RATE, _MOST_RATE = 0.1, 1e6
"""Tokens per second. A slower answer holds the device for hours."""


def _rate(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and _LEAST_RATE <= value <= _MOST_RATE
    if value in ("auto", "unlimited") or number:
        return value
    raise PydanticCustomError("rate", "must be auto, unlimited, or tokens per second, at least 0.1")


def _refine(value: Any) -> Any:
    try:
        RefineTarget.parse(value)
    except (ConfigurationError, OverflowError) as error:  # its words quote the value, however long
        raise PydanticCustomError("refine", "must be {forms}", {"forms": FORMS}) from error
    return value


class PDDFields(WireModel):
    """``pdd``. A field that it does not have is refused: it would change the answer."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    tokens: bool = False
    """Each chunk of a stream has ``pdd.tokens``: who made them, and when they were received and shown.
    ``pdd.received_s`` says when the tokens were received that have come since the chunk before, shown or not."""
    rate: Annotated[Any, AfterValidator(_rate)] = None
    plan: Literal["auto", "off", "handoff", "cloud", "device"] | None = None
    refine: Annotated[Any, AfterValidator(_refine)] = None

    def settings(self) -> OwnSettings:
        """Return the settings that the answer has otherwise than the server."""
        return OwnSettings(rate=self.rate, plan=self.plan, refine=self.refine)
