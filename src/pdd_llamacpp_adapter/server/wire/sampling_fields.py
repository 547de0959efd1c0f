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
_MOST_ALLOWED_IDS = 65_536
"""In `allowed_token_ids`."""

# more digits than these have would be too many to write back into an error
Tokens = Annotated[int, Field(ge=1, lt=INT32)]
"""A limit on an answer's length."""
_Small = Annotated[int, Field(ge=-INT32, lt=INT32)]


def _at_most(most: int) -> BeforeValidator:
    """Count before the entries are looked at: each that is wrong makes an error of its own."""

    def counted(value: Any) -> Any:
        if isinstance(value, list | dict) and len(value) > most:
            raise PydanticCustomError("too_long", "must not have more than {most} entries", {"most": most})
        return value

    return BeforeValidator(counted)


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_TYPES: dict[str, Any] = {
    "bool": bool,
    "float": float,
    "int": int,
    "int | None": int,
    "Sequence[int]": Annotated[list[_Small], _at_most(_MOST_TOKEN_IDS)],
    "Sequence[int] | None": Annotated[list[_Small], _at_most(_MOST_ALLOWED_IDS)],
    "Sequence[str]": Annotated[list[str], BeforeValidator(_listed)],
    "Mapping[int, float]": Annotated[dict[int, float], _at_most(_MOST_TOKEN_IDS)],
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
    cache_salt: str | None = None


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
    continuous_usage_stats: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """What a client wants to be told besides the answer itself. Names are those of the request's fields."""

    include_usage: bool = False
    """A stream has the usage before its end."""
    continuous_usage_stats: bool = False
    """Each of its chunks has the usage so far, too; only with `include_usage`, as in vLLM."""
    logprobs: bool = False
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    """Tokens are called ``token_id:N`` in logprobs."""
    sources: bool = False
    """Each chunk of a stream says who made its tokens, and when they were received and shown."""


@_with_sampling
class SamplingFields(ModelRequest):
    """The fields that all answering routes share: OpenAI's, and vLLM's extras. Those of `SamplingParams` follow.

    Bounds that are not given there are `AnswerRequest`'s own.
    """

    stream: bool = False
    stream_options: StreamOptions = Field(default_factory=StreamOptions)
    n: _Small = 1
    structured_outputs: dict[str, Any] | None = None
    cache_salt: Annotated[str, Field(min_length=1, max_length=1024)] | None = None

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
        return Sampling(
            **shared, cache_salt=self.cache_salt, max_tokens=max_tokens, logprobs=logprobs, left_out=left_out
        )


class TokenIdFields(WireModel):
    """vLLM's fields for token ids in an answer, which chat completions and legacy completions have."""

    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False

    def details(self, options: StreamOptions, *, logprobs: bool) -> Details:
        """Return what to tell besides the answer."""
        return Details(
            include_usage=options.include_usage,
            continuous_usage_stats=options.continuous_usage_stats,
            logprobs=logprobs,
            return_token_ids=self.return_token_ids,
            return_tokens_as_token_ids=self.return_tokens_as_token_ids,
        )
