"""``/v1/stream`` and ``/v1/streams``: read an answer's stream again, stop the answer, list the streams.

At first, llama.cpp's server had the name in the path and a list of all streams; since then, it has the name in the
query, and a look-up. Both work here.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pdd_core.errors import InvalidRequest
from pdd_llamacpp_adapter.server.streams.conversation_id import check_conversation_id
from pdd_llamacpp_adapter.server.streams.stream_reading import StreamReading
from pdd_llamacpp_adapter.server.wire.bodies import ModelRequest, read_body
from pdd_llamacpp_adapter.server.wire.failures import INVALID, NOT_FOUND, ErrorObject, error_response

if TYPE_CHECKING:
    from collections.abc import Iterable

    from starlette.requests import Request

    from pdd_llamacpp_adapter.server.streams.kept_streams import KeptStream, KeptStreams
    from pdd_llamacpp_adapter.server.wire.json_body import Json

_NUMBER = re.compile(r"[0-9]{1,18}")
_MOST_IDS = 2**16
_BODY = 2**20


class Lookup(ModelRequest):
    """The body of a look-up."""

    conversation_ids: tuple[str, ...] = ()


def routes(streams: KeptStreams, *, send_timeout: float, listed: bool) -> list[Route]:
    """Return the routes of `streams`.

    Args:
        streams: the streams.
        send_timeout: seconds; a client that takes nothing for this long counts as gone.
        listed: tell all streams there are; otherwise only those whose names the client knows.
    """

    async def read(request: Request) -> Response:
        stream = streams.get(_named(request))
        if stream is None:
            raise InvalidRequest("no stream has this id: it is unknown, too old or deleted", code=NOT_FOUND)
        place = request.query_params.get("from") or "0"
        if not _NUMBER.fullmatch(place):
            raise InvalidRequest("from must be a number of bytes", param="from")
        if int(place) < stream.log.begin:
            lost = f"the stream's first {stream.log.begin} bytes are no longer kept: ask again"
            raise InvalidRequest(lost, param="from", code="stream_offset_lost")
        return StreamReading(stream, int(place), send_timeout)

    async def delete(request: Request) -> Response:
        name = _named(request)
        within = request.query_params.get("unless_read_s")
        if within is None:
            streams.remove(name)
        elif not _NUMBER.fullmatch(within):
            raise InvalidRequest("unless_read_s must be a number of seconds", param="unless_read_s")
        elif (stream := streams.get(name)) is not None:
            stream.expect_reader(float(within))
        return Response(status_code=204)

    async def tell(request: Request) -> Response:
        names = request.query_params.getlist("conversation_id")
        if names:
            return JSONResponse(_told(streams, names))
        if not listed:
            message = "without a key, only streams whose conversation_id is named are listed"
            return error_response(ErrorObject(403, message, INVALID, "conversation_id", "streams_not_listed"))
        return JSONResponse([_entry(stream) for stream in streams.all()])

    async def look_up(request: Request) -> Response:
        body = await read_body(request, Lookup, limit=_BODY, most=_MOST_IDS)
        return JSONResponse(_told(streams, body.conversation_ids))

    one = "/v1/stream"
    return [
        Route(one, read, methods=["GET"]),
        Route(one, delete, methods=["DELETE"]),
        Route(one + "/{conversation_id:path}", read, methods=["GET"]),
        Route(one + "/{conversation_id:path}", delete, methods=["DELETE"]),
        Route("/v1/streams", tell, methods=["GET"]),
        Route("/v1/streams/lookup", look_up, methods=["POST"]),
    ]


def _named(request: Request) -> str:
    """Return the conversation that a request names, in its path or as ``conv_id``."""
    name = request.path_params.get("conversation_id") or request.query_params.get("conv_id", "")
    return check_conversation_id(name, "conv_id")


def _told(streams: KeptStreams, names: Iterable[str]) -> list[Json]:
    """Return the streams of these conversations, those of ``NAME::MODEL`` among them."""
    wanted = frozenset(names)
    found = (stream for stream in streams.all() if _own_names(stream) & wanted)
    return [_entry(stream) for stream in found]


def _own_names(stream: KeptStream) -> set[str]:
    return {stream.conversation_id, stream.conversation_id.rpartition("::")[0]} - {""}


def _entry(stream: KeptStream) -> Json:
    return {
        "conversation_id": stream.conversation_id,
        "is_done": stream.log.closed,
        "total_bytes": stream.log.end,
        "started_at": stream.started_at,
        "completed_at": stream.completed_at,
    }
