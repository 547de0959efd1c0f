"""The application: all routes over one `Service`, and what every request goes through."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from pdd_core.errors import PDDError
from pdd_llamacpp_adapter.server import info
from pdd_llamacpp_adapter.server.answers.delivery import PDD_HEADER
from pdd_llamacpp_adapter.server.chat import chat_routes
from pdd_llamacpp_adapter.server.completions import completion_routes
from pdd_llamacpp_adapter.server.gate import REQUEST_ID, Gate, JoinTrace, RequestBooks
from pdd_llamacpp_adapter.server.responses import response_routes
from pdd_llamacpp_adapter.server.streams import stream_routes
from pdd_llamacpp_adapter.server.ui import pages, status
from pdd_llamacpp_adapter.server.wire.failures import (
    CLIENT_GONE,
    INTERNAL,
    INVALID,
    ErrorObject,
    error_object,
    error_response,
)

if TYPE_CHECKING:
    from starlette.requests import Request

    from pdd_llamacpp_adapter.server.answers.service import Service

logger = logging.getLogger(__name__)

_CODES = {404: "not_found", 405: "method_not_allowed"}


def create_app(service: Service) -> Starlette:
    """Return the ASGI application.

    It can serve before ``service.runtime`` is set: every route but ``/metrics`` and ``/version`` then answers 503.
    """
    limits = service.limits
    routes = [
        *info.routes(service),
        *chat_routes.routes(service),
        *completion_routes.routes(service),
        *response_routes.routes(service),
        *stream_routes.routes(service.streams, send_timeout=limits.send_timeout, listed=limits.lists_streams),
        *status.routes(service),
        *(pages.routes() if limits.ui else ()),
    ]
    paths: dict[object, str] = {route.endpoint: route.path for route in routes}
    middleware = [Middleware(RequestBooks, service=service, paths=paths)]
    if limits.allow_origins:
        middleware.append(
            Middleware(
                CORSMiddleware,
                allow_origins=list(limits.allow_origins),
                allow_methods=["GET", "POST", "DELETE"],
                allow_headers=["*"],
                expose_headers=[REQUEST_ID, PDD_HEADER],
                # asked of a page from the web before it may reach this machine or its network
                allow_private_network=True,
            )
        )
    middleware.append(Middleware(Gate, service=service))
    if service.tracing is not None:
        middleware.append(Middleware(JoinTrace, tracing=service.tracing))
    return Starlette(
        routes=routes,
        middleware=middleware,
        exception_handlers={
            PDDError: _ours,
            HTTPException: _http,
            ClientDisconnect: _gone,
            Exception: _unexpected,
        },
    )


async def _ours(_: Request, error: Exception) -> Response:
    told = error_object(error) if isinstance(error, PDDError) else INTERNAL
    if told is INTERNAL:
        logger.error("a request failed", exc_info=error)
    return error_response(told)


async def _http(request: Request, error: Exception) -> Response:
    """Answer a request that has no route."""
    if not isinstance(error, HTTPException):
        raise error
    message = f"{error.detail}: {request.method} {request.url.path[:200]}"
    response = error_response(ErrorObject(error.status_code, message, INVALID, code=_CODES.get(error.status_code)))
    response.headers.update(error.headers or {})
    return response


async def _gone(_: Request, __: Exception) -> Response:
    """Answer a client that left before it had sent its body: for the metrics only."""
    return Response(status_code=CLIENT_GONE)


async def _unexpected(request: Request, _: Exception) -> Response:
    """Answer where the program is wrong; who runs the application logs the traceback."""
    response = error_response(INTERNAL)
    response.headers[REQUEST_ID] = getattr(request.state, "request_id", "")
    return response
