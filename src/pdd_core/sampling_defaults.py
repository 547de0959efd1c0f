"""How a model's makers would have its tokens chosen: what a request gets that does not say."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

if TYPE_CHECKING:
    from collections.abc import Mapping

logger = logging.getLogger(__name__)


class DefaultSamplingParams(BaseModel):
    """vLLM's ``ModelConfig.get_diff_sampling_param()``; null where the model has no way of its own."""

    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)

    temperature: float | None = Field(default=None, ge=0)
    """0 is greedy."""
    top_p: float | None = Field(default=None, gt=0, le=1)
    """As in a request."""
    top_k: int | None = Field(default=None, ge=-1, lt=2**31)
    """0 or -1 keeps all."""
    min_p: float | None = Field(default=None, ge=0, le=1)
    """As in a request."""
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    """As in a request."""
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    """As in a request."""
    repetition_penalty: float | None = Field(default=None, ge=1e-6, le=1e6)
    """1 changes nothing."""
    max_tokens: int | None = Field(default=None, ge=1, lt=2**31)
    """Most tokens of an answer."""

    @classmethod
    def of(cls, values: Mapping[str, Any], *, source: str) -> Self:
        """Return those of `values` that a request could have; the log names the others, and `source`.

        A wrong one in a model's files is no reason not to serve the model.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            wrong = sorted({str(one["loc"][0]) for one in error.errors(include_url=False)})
            logger.warning("%s: left out, as no request could have them: %s", source, ", ".join(wrong))
            return cls.model_validate({name: value for name, value in values.items() if name not in wrong})

    def given(self) -> dict[str, float]:
        """Return the parameters that the model has a way of its own for, but for `max_tokens`."""
        return self.model_dump(exclude_none=True, exclude={"max_tokens"})
