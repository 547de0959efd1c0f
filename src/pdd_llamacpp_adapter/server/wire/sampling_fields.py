"""The fields that all answering routes share: how to choose tokens, and when to stop."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, Field
from pydantic_core import PydanticCustomError

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.wire.bodies import ModelRequest, WireModel

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_MOST_TOKEN_IDS = 1024
"""In `logit_bias` and in `stop_token_ids`; OpenAI's API takes 300."""
_INT64 = 2**63
_INT32 = 2**31

# more digits than these have would be too many to write back into an error
Tokens = Annotated[int, Field(ge=1, lt=_INT32)]
"""A limit on an answer's length."""
_Small = Annotated[int, Field(ge=-_INT32, lt=_INT32)]


def _few(value: Any) -> Any:
    """Count before the entries are looked at: each that is wrong makes an error of its own."""
    if isinstance(value, list | dict) and len(value) > _MOST_TOKEN_IDS:
        raise PydanticCustomError("too_long", "must not have more than {most} entries", {"most": _MOST_TOKEN_IDS})
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to choose tokens, and when to stop; defaults are OpenAI's. Bounds are checked by `AnswerRequest`."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    max_tokens: int | None = None
    """None: all that the context has room for."""
    min_tokens: int = 0
    stop: Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    """Number of most likely tokens to return besides the chosen one's logprob; None returns no logprobs."""


class StreamOptions(WireModel):
    """``stream_options``."""

    include_usage: bool = False


class SamplingFields(ModelRequest):
    """The fields that all answering routes share: OpenAI's, and vLLM's extras.

    Bounds that are not given here are `AnswerRequest`'s own.
    """

    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    n: _Small = 1
    temperature: Annotated[float, Field(ge=0, le=2)] = 1.0
    top_p: float = 1.0
    seed: Annotated[int, Field(ge=-_INT64, lt=_INT64)] | None = None
    stop: Annotated[list[str], BeforeValidator(_listed), Field(max_length=4)] = Field(default_factory=list)
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Annotated[dict[int, float], BeforeValidator(_few)] = Field(default_factory=dict)
    top_k: Annotated[int, Field(lt=_INT32)] = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    min_tokens: Annotated[int, Field(ge=0, lt=_INT32)] = 0
    stop_token_ids: Annotated[list[_Small], BeforeValidator(_few)] = Field(default_factory=list)
    ignore_eos: bool = False

    def check_n(self) -> None:
        """Refuse more than one choice.

        Raises:
            InvalidRequest: `n` is not 1.
        """
        if self.n != 1:
            raise InvalidRequest(
                f"n must be 1, not {self.n}: one answer is made at a time", param="n", code="unsupported_value"
            )

    def check_length(self, most: int) -> None:
        """Refuse a prompt that has more messages, parts or ids than tokens fit, before anything is made of them.

        Raises:
            ContextOverflow: there are more than `most`.
        """

    def sampling_fields(self) -> dict[str, Any]:
        """Return what `Sampling` takes under the same names."""
        names = set(SamplingFields.model_fields) - {*ModelRequest.model_fields, "stream", "stream_options", "n"}
        return {name: getattr(self, name) for name in names}
