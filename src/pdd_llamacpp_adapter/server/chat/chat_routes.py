"""``/v1/chat/completions``: make one, read it again, delete it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.answers.answering import new_id
from pdd_llamacpp_adapter.server.answers.delivery import stream_answer, whole_answer
from pdd_llamacpp_adapter.server.answers.read_request import read_request
from pdd_llamacpp_adapter.server.chat.chat_objects import ChatChunks, chat_completion, retrieved_completion
from pdd_llamacpp_adapter.server.chat.chat_request import ChatRequest
from pdd_llamacpp_adapter.server.prompts.prepare import prepare_body
from pdd_llamacpp_adapter.server.wire.failures import NOT_FOUND

if TYPE_CHECKING:
    from starlette.requests import Request

    from pdd_llamacpp_adapter.server.answers.service import Service

PATH = "/v1/chat/completions"


def routes(service: Service) -> list[Route]:
    """Return the routes of chat completions."""

    async def create(request: Request) -> Response:
        body, call = await read_request(request, ChatRequest, service, answer_id=new_id("chatcmpl-"))
        prepared = await prepare_body(body, call)
        shape = body.shape(prepared.request.prompt_token_ids)
        described = partial(retrieved_completion, shape)
        if body.stream:
            writer = ChatChunks(call, shape, only_calls=prepared.only_calls)
            return stream_answer(call, prepared, writer, described=described)
        build = partial(chat_completion, call, shape)
        return await whole_answer(call, prepared, build, receive=request.receive, described=described)

    async def retrieve(request: Request) -> Response:
        completion = service.stored.get(request.path_params["completion_id"])
        if completion is None:
            raise _unknown()
        return Response(completion, media_type=JSONResponse.media_type)

    async def delete(request: Request) -> Response:
        completion_id = request.path_params["completion_id"]
        if not service.stored.remove(completion_id):
            raise _unknown()
        return JSONResponse({"id": completion_id, "object": "chat.completion.deleted", "deleted": True})

    one = PATH + "/{completion_id}"
    return [
        Route(PATH, create, methods=["POST"]),
        Route(one, retrieve, methods=["GET"]),
        Route(one, delete, methods=["DELETE"]),
    ]


def _unknown() -> InvalidRequest:
    return InvalidRequest("no chat completion has this id: it is unknown, too old or deleted", code=NOT_FOUND)
