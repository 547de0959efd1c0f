"""The fields that all answering routes share: how to choose tokens, and when to stop."""

from __future__ import annotations

from dataclasses import MISSING, dataclass, fields
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, create_model
from pydantic_core import PydanticCustomError

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import INT32, SamplingParams
from pdd_llamacpp_adapter.server.wire.bodies import Body, ModelRequest, WireModel

_MOST_TOKEN_IDS = 1024
"""In `logit_bias` and in `stop_token_ids`; OpenAI's API takes 300."""

# more digits than these have would be too many to write back into an error
Tokens = Annotated[int, Field(ge=1, lt=INT32)]
"""A limit on an answer's length."""
_Small = Annotated[int, Field(ge=-INT32, lt=INT32)]


def _few(value: Any) -> Any:
    """Count before the entries are looked at: each that is wrong makes an error of its own."""
    if isinstance(value, list | dict) and len(value) > _MOST_TOKEN_IDS:
        raise PydanticCustomError("too_long", "must not have more than {most} entries", {"most": _MOST_TOKEN_IDS})
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_TYPES: dict[str, Any] = {
    "bool": bool,
    "float": float,
    "int": int,
    "int | None": int,
    "Sequence[int]": Annotated[list[_Small], BeforeValidator(_few)],
    "Sequence[str]": Annotated[list[str], BeforeValidator(_listed)],
    "Mapping[int, float]": Annotated[dict[int, float], BeforeValidator(_few)],
}
"""A body's field by what `SamplingParams` has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling(SamplingParams):
    """What a client asks for; defaults are OpenAI's. Bounds are checked by `AnswerRequest`."""

    temperature: float = 1.0
    max_tokens: int | None = None
    """None: all that the context has room for."""
    logprobs: int | None = None
    """Number of most likely tokens to return besides the chosen one's logprob; None returns no logprobs."""
    left_out: frozenset[str] = frozenset()
    """What of `SamplingParams` the client left to the model's own way; as in vLLM, null is the same as absent."""


def _with_sampling(model: type[Body]) -> type[Body]:
    """Return `model` with a field for each of `SamplingParams`."""
    asked = {parameter.name: parameter for parameter in fields(Sampling)}
    made: dict[str, Any] = {}
    for parameter in fields(SamplingParams):
        factory = parameter.default_factory
        default = asked[parameter.name].default if factory is MISSING else Field(default_factory=factory)
        made[parameter.name] = (Annotated[_TYPES[str(parameter.type)], Field(**parameter.metadata)], default)
    return create_model(model.__name__, __base__=model, __module__=model.__module__, **made)


class StreamOptions(WireModel):
    """``stream_options``."""

    include_usage: bool = False


@_with_sampling
class SamplingFields(ModelRequest):
    """The fields that all answering routes share: OpenAI's, and vLLM's extras. Those of `SamplingParams` follow.

    Bounds that are not given there are `AnswerRequest`'s own.
    """

    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    n: _Small = 1

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

    def _sampling(self, *, max_tokens: int | None, logprobs: int | None) -> Sampling:
        """Return what is asked for, with what each route has a name of its own for."""
        shared = {parameter.name: getattr(self, parameter.name) for parameter in fields(SamplingParams)}
        left_out = frozenset(shared) - self.model_fields_set
        return Sampling(**shared, max_tokens=max_tokens, logprobs=logprobs, left_out=left_out)
