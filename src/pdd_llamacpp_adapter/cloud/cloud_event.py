"""One event of vLLM's ``/v1/completions`` stream, as far as it is read."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pdd_core.errors import CloudLost
from pdd_core.fingerprint import Natural

_FARTHEST = 1e6
"""Logprobs lie between vLLM's -9999 and 0, logits in their place (``--logprobs-mode``) not far from that."""
Likelihood = Annotated[float, Field(strict=True, ge=-_FARTHEST, le=_FARTHEST)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", allow_inf_nan=False)


class Logprobs(_Part):
    """Completions' logprobs, one of each per token of the chunk."""

    tokens: list[str] | None = None
    """``token_id:N`` (vLLM's ``return_tokens_as_token_ids``)."""
    token_logprobs: list[Likelihood] | None = None
    top_logprobs: list[dict[str, Likelihood] | None] | None = None


class Choice(_Part):
    """The answer's next tokens."""

    text: str | None = None
    token_ids: list[Natural] | None = None
    finish_reason: str | None = None
    stop_reason: int | str | None = None
    logprobs: Logprobs | None = None


class Usage(_Part):
    """vLLM's ``continuous_usage_stats``: how many tokens the stream has brought, this event's included."""

    completion_tokens: Natural


class Problem(_Part):
    """vLLM's error object; its own HTTP status is the code."""

    message: str = ""
    code: Annotated[int, Field(strict=True)] | str | None = None


class CloudEvent(_Part):
    """An event. Without `choices` it is the usage of the whole answer."""

    choices: Annotated[list[Choice], Field(max_length=1)] = []
    usage: Usage | None = None
    error: Problem | str | None = None
    pdd: Any = None
    """A `HandoffUpdate`, not checked yet: a wrong one costs no token."""


def read_event(data: bytes) -> CloudEvent:
    """Return the event that `data` is.

    Raises:
        CloudLost: it is none, its tokens are no ids, its likelihoods no numbers.
    """
    try:
        return CloudEvent.model_validate_json(data)
    except ValidationError as error:
        where = error.errors(include_url=False, include_context=False, include_input=False)[0]["loc"]
        what = ".".join(str(step) for step in where if isinstance(step, str) and step.isidentifier())
        raise CloudLost(f"the cloud sends an event that cannot be read{what and f': {what[:60]}'}") from error
