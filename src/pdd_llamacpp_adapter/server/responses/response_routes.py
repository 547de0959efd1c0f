"""``POST /v1/responses``, the length of its prompt, and what is there instead of stored responses."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse
from starlette.routing import Route

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.answers.answering import new_id
from pdd_llamacpp_adapter.server.answers.delivery import stream_answer, whole_answer
from pdd_llamacpp_adapter.server.answers.read_request import read_request
from pdd_llamacpp_adapter.server.prompts.prepare import count_prompt, prepare_body
from pdd_llamacpp_adapter.server.responses.events import ResponseEvents, whole_response
from pdd_llamacpp_adapter.server.responses.response_request import ResponsesRequest
from pdd_llamacpp_adapter.server.wire.failures import NOT_FOUND

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.responses import Response

    from pdd_llamacpp_adapter.server.answers.service import Service

PATH = "/v1/responses"


def routes(service: Service) -> list[Route]:
    """Return the routes of responses."""

    async def create(request: Request) -> Response:
        body, call = await read_request(request, ResponsesRequest, service, answer_id=new_id("resp_"))
        prepared = await prepare_body(body, call)
        writer = ResponseEvents(call, body.echoed(prepared.request), with_logprobs=body.with_logprobs)
        if body.stream:
            return stream_answer(call, prepared, writer)
        return await whole_answer(call, prepared, partial(whole_response, writer), receive=request.receive)

    async def count(request: Request) -> Response:
        body, call = await read_request(request, ResponsesRequest, service, answer_id="")
        return JSONResponse({"object": "response.input_tokens", "input_tokens": await count_prompt(body, call)})

    async def stored(_: Request) -> Response:
        raise InvalidRequest("no response has this id: responses are not stored here", code=NOT_FOUND)

    return [
        Route(PATH, create, methods=["POST"]),
        Route(PATH + "/input_tokens", count, methods=["POST"]),
        Route(PATH + "/{response_id:path}", stored, methods=["GET", "POST", "DELETE"]),
    ]
