"""Request bodies: JSON to pydantic models, and pydantic's complaints to OpenAI's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import anyio
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.request import context_overflow
from pdd_llamacpp_adapter.server.wire.field_table import Row, refuse_fields
from pdd_llamacpp_adapter.server.wire.json_body import parse, read_data

if TYPE_CHECKING:
    from collections.abc import Sequence

    from starlette.requests import Request

Body = TypeVar("Body", bound="ModelRequest")

_LONG = 2**16
"""Bytes of a body that is checked on a worker thread: it may take longer than the event loop can wait."""


class WireModel(BaseModel):
    """Base of all request bodies: unknown fields are ignored, and null is the same as absent."""

    model_config = ConfigDict(extra="ignore", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class ModelRequest(WireModel):
    """A request to a model."""

    fates: ClassVar[Mapping[str, Row]] = {}
    """What becomes of each field of the route's."""
    model: str | None = None
    # of no consequence for the answer, so never a reason to refuse it
    prompt_cache_key: Any = None
    user: Any = None


async def read_body(request: Request, model: type[Body], *, limit: int, most: int) -> Body:
    """Read and check a request's body. Its content type is not insisted on.

    Raises:
        InvalidRequest: it is not JSON, `model` or its `fates` refuse it, it has more than `most` values or than
            `limit` bytes (status 413), or it comes too slowly (408).
    """
    data = await read_data(request, limit=limit)
    if len(data) < _LONG:
        return _validated(data, model, most)
    return await anyio.to_thread.run_sync(_validated, data, model, most)


def _validated(data: bytes, model: type[Body], most: int) -> Body:
    try:
        body = parse(data, most=most)
        if isinstance(body, dict):
            refuse_fields(body, model.fates)
        return model.model_validate(body)
    except ValidationError as error:
        raise _complaint(error) from None


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
        raise context_overflow(most, f"your {where} has {count} parts: the prompt is too long")


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
