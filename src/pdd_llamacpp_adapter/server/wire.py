"""Request bodies: JSON to pydantic models, and pydantic's complaints to OpenAI's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from pdd_core.errors import ContextOverflow, InvalidRequest
from pdd_llamacpp_adapter.server.answering import Call
from pdd_llamacpp_adapter.server.failures import MODEL_NOT_FOUND
from pdd_llamacpp_adapter.server.json_body import parse, read_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

    from pdd_llamacpp_adapter.server.service import AnswerSource, Service

Body = TypeVar("Body", bound="WireModel")
Asked = TypeVar("Asked", bound="SamplingFields")

_LONGEST_NAME = 200
"""Characters of a group's name that count."""
_LONG = 2**16
"""Bytes of a body that is checked on a worker thread: it may take longer than the event loop can wait."""
_FURTHER_VALUES = 2**16
"""Values that a body may have whatever the context: those of its tools and schemas, most of all."""
_MOST_TOKEN_IDS = 1024
"""In `logit_bias` and in `stop_token_ids`; OpenAI's API takes 300."""
_INT64 = 2**63
_INT32 = 2**31

# more digits than these have would be too many to write back into an error
Tokens = Annotated[int, Field(ge=1, lt=_INT32)]
"""A limit on an answer's length."""
_Small = Annotated[int, Field(ge=-_INT32, lt=_INT32)]


class WireModel(BaseModel):
    """Base of all request bodies: unknown fields are ignored, and null is the same as absent."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


def _few(value: Any) -> Any:
    """Count before the entries are looked at: each that is wrong makes an error of its own."""
    if isinstance(value, list | dict) and len(value) > _MOST_TOKEN_IDS:
        raise PydanticCustomError("too_long", "must not have more than {most} entries", {"most": _MOST_TOKEN_IDS})
    return value


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class StreamOptions(WireModel):
    """``stream_options``."""

    include_usage: bool = False


class ModelRequest(WireModel):
    """A request to a model."""

    model: str | None = None
    # of no consequence for the answer, so never a reason to refuse it
    prompt_cache_key: Any = None
    user: Any = None


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


async def read_request(
    request: Request, model: type[Asked], service: Service, *, answer_id: str
) -> tuple[Asked, Call]:
    """Read and check the body of a request for an answer, and open the books for it.

    Raises:
        InvalidRequest: as `read_body` and `check_model` do.
        ContextOverflow: as `SamplingFields.check_length` does.
        ServerStopping: the server was told to stop meanwhile.
    """
    runtime = service.loaded()
    longest = runtime.context_limit()
    # a message of one part has six values, and no template writes it in fewer than three tokens
    most = _FURTHER_VALUES + 2 * longest
    limit = service.limits.max_body_bytes
    body = await service.incoming.receive(lambda: read_body(request, model, limit=limit, most=most))
    check_model(body.model, runtime)
    body.check_length(longest)
    call = Call(
        service=service,
        runtime=runtime,
        route=request.url.path,
        request_id=request.state.request_id,
        answer_id=answer_id,
        group=_group(request, body),
    )
    return body, call


def _group(request: Request, body: ModelRequest) -> str:
    """Return whose answers are alike: the route, and the app or tenant by what its client sends."""
    told = (body.prompt_cache_key, body.user, request.headers.get("user-agent"))
    name = next((one for one in told if isinstance(one, str) and one), "")
    return f"{request.url.path} {name[:_LONGEST_NAME]}"


async def read_body(request: Request, model: type[Body], *, limit: int, most: int) -> Body:
    """Read and check a request's body. Its content type is not insisted on.

    Raises:
        InvalidRequest: it is not JSON, `model` refuses it, or it has more than `most` values or than `limit` bytes
            (status 413).
    """
    data = await read_data(request, limit=limit)
    if len(data) < _LONG:
        return _validated(data, model, most)
    return await anyio.to_thread.run_sync(_validated, data, model, most)


def _validated(data: bytes, model: type[Body], most: int) -> Body:
    try:
        return model.model_validate(parse(data, most=most))
    except ValidationError as error:
        raise _complaint(error) from None


def check_model(name: str | None, runtime: AnswerSource) -> None:
    """Refuse a request for another model than the served one.

    Raises:
        InvalidRequest: `name` is neither None, "default" nor the served name; HTTP status 404.
    """
    if name is not None and name not in ("default", runtime.model_name):
        message = f"the model {name[:200]!r} does not exist: this server has {runtime.model_name!r}"
        raise InvalidRequest(message, param="model", code=MODEL_NOT_FOUND)


def check_items(items: list[Any], most: int, where: str, *, inner: Sequence[str] = ()) -> None:
    """Refuse more than `most` items, or more than so many in the lists that they have under the names `inner`.

    Raises:
        ContextOverflow: there are more; each of them would have at least one token.
    """
    count = len(items)
    if count <= most:
        lists = (item.get(name) for item in items if isinstance(item, dict) for name in inner)
        count = max(count, sum(len(found) for found in lists if isinstance(found, list)))
    if count > most:
        raise ContextOverflow(f"the context holds {most} tokens, but {where} has {count} parts")


def _complaint(error: ValidationError) -> InvalidRequest:
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    message, where = first["msg"], first["loc"]
    if not where:
        return InvalidRequest("the body must be a JSON object")
    path = str(where[0]) + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in where[1:])
    path = path[:200]
    missing = first["type"] == "missing"
    what = "is missing" if missing else message[:1].lower() + message[1:]
    return InvalidRequest(f"{path}: {what}", param=path, code="missing_required_parameter" if missing else None)
