"""From an HTTP request to a checked body and its `Call`."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.answers.answering import Call
from pdd_llamacpp_adapter.server.streams.conversation_id import conversation_of
from pdd_llamacpp_adapter.server.wire.bodies import read_body
from pdd_llamacpp_adapter.server.wire.failures import MODEL_NOT_FOUND
from pdd_llamacpp_adapter.server.wire.sampling_fields import SamplingFields

if TYPE_CHECKING:
    from starlette.requests import Request

    from pdd_llamacpp_adapter.server.answers.service import AnswerSource, Service
    from pdd_llamacpp_adapter.server.wire.bodies import ModelRequest

Asked = TypeVar("Asked", bound=SamplingFields)

_LONGEST_NAME = 200
"""Characters of a group's name that count."""
_FURTHER_VALUES = 2**16
"""Values that a body may have whatever the context: those of its tools and schemas, most of all."""


async def read_request(
    request: Request, model: type[Asked], service: Service, *, answer_id: str
) -> tuple[Asked, Call]:
    """Read and check the body of a request for an answer, and open the books for it.

    Raises:
        InvalidRequest: as `read_body`, `check_model` and `conversation_of` do.
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
        named_session=request.headers.get(runtime.session_header, "") if runtime.session_header else "",
        conversation_id=conversation_of(request.headers),
    )
    return body, call


def _group(request: Request, body: ModelRequest) -> str:
    """Return whose answers are alike: the route, and the app or tenant by what its client sends."""
    told = (body.prompt_cache_key, body.user, request.headers.get("user-agent"))
    name = next((one for one in told if isinstance(one, str) and one), "")
    return f"{request.url.path} {name[:_LONGEST_NAME]}"


def check_model(name: str | None, runtime: AnswerSource) -> None:
    """Refuse a request for another model than the served one.

    Raises:
        InvalidRequest: `name` is neither "default" nor the served name; HTTP status 404. As in vLLM, a name that
            is empty counts as left out.
    """
    if name and name not in ("default", runtime.model_name):
        message = f"the model {name[:200]!r} does not exist: this server has {runtime.model_name!r}"
        raise InvalidRequest(message, param="model", code=MODEL_NOT_FOUND)
