"""What happens to every request: an id, the count, the key, the refusal while there is no model, its trace."""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from pdd_llamacpp_adapter.server.ui.pages import PATHS
from pdd_llamacpp_adapter.server.wire.failures import (
    CLIENT_GONE,
    INVALID,
    LOADING,
    SHUTTING_DOWN,
    ErrorObject,
    error_response,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from pdd_core.tracing import Tracing
    from pdd_llamacpp_adapter.server.answers.service import Service

REQUEST_ID = "x-request-id"
OPEN = frozenset({"/health", "/v1/health", "/version"})
"""Paths that need no key."""
_ALWAYS = frozenset({"/metrics", "/version"})
"""Paths that need no model."""
_UNSAFE = re.compile(r"[^\w.:/+=-]", re.ASCII)
_PORT = re.compile(r":\d+$")
_LONGEST_ID = 128
LOCAL = ("127.0.0.1", "localhost", "[::1]")
"""Names by which a browser knows the loopback address, and nobody else's page its own server."""
_LOOPBACK = re.compile(r"^(127\.0\.0\.1|\[::1\])(?=(:\d+)?$)")


class RequestBooks:
    """Gives each request its id, the client's own if it sent one, and counts it by route and status."""

    def __init__(self, app: ASGIApp, service: Service, paths: Mapping[object, str]) -> None:
        self._app = app
        self._service = service
        self._paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = _UNSAFE.sub("", Headers(scope=scope).get(REQUEST_ID, ""))[:_LONGEST_ID]
        request_id = scope.setdefault("state", {})["request_id"] = sent or f"req_{uuid4().hex}"
        status = CLIENT_GONE

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[REQUEST_ID] = request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except Exception:
            status = 500
            raise
        finally:
            path = self._paths.get(scope.get("endpoint"), "other")
            self._service.metrics.count_request(path, status)


class Gate:
    """Lets a request through that has the key, once there is a model and until the server stops.

    Without a key, every program that reaches the server may use it, but no web page from elsewhere.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self._app = app
        self._service = service
        self._hosts = (*LOCAL, *(host.lower() for host in service.limits.allow_hosts))
        self._most_headers, self._most_bytes = service.limits.max_headers, service.limits.max_head_bytes
        self._origins = frozenset(service.limits.allow_origins)
        self._pages = PATHS if service.limits.ui else frozenset()
        key = service.limits.api_key
        self._key = None if key is None else key.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or refuse it."""
        answer = self._refusal(scope) if scope["type"] == "http" else None
        await (answer or self._app)(scope, receive, send)

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        path, headers = scope["path"], Headers(scope=scope)
        if len(scope["headers"]) > self._most_headers or _head_bytes(scope) > self._most_bytes:
            message = f"the request's head has more than {self._most_headers} headers or {self._most_bytes} bytes"
            return error_response(ErrorObject(431, message, INVALID, code="head_too_large"))
        host = headers.get("host", "").lower()
        if self._key is None and not self._is_own(host, scope):
            message = "without a key, this server answers to its addresses and to the names in allow_hosts alone"
            return error_response(ErrorObject(403, message, INVALID, code="host_not_allowed"))
        if self._key is None and not self._may_ask(headers.get("origin"), host):
            message = "a web page from elsewhere may use this server only if allow_origins names it, or with a key"
            return error_response(ErrorObject(403, message, INVALID, code="origin_not_allowed"))
        if path in self._pages:
            return None  # they hold no secret, and say themselves that a key or the model is not there
        if path not in OPEN and not self._has_key(headers.get("authorization", "")):
            message = "a valid API key is needed: send it as 'Authorization: Bearer KEY'"
            return error_response(ErrorObject(401, message, INVALID, code="invalid_api_key"))
        if path in _ALWAYS:
            return None
        if self._service.stopping:
            return error_response(SHUTTING_DOWN)
        if self._service.runtime is None:
            return JSONResponse(LOADING, status_code=503, headers={"retry-after": "1"})
        return None

    def _is_own(self, host: str, scope: Scope) -> bool:
        """Return whether `host` is this server: a page from elsewhere may have its own name resolve to it."""
        name = _PORT.sub("", host)
        address, _ = scope.get("server") or ("", None)
        return not name or name in self._hosts or name in (address.lower(), f"[{address}]".lower())

    def _may_ask(self, origin: str | None, host: str) -> bool:
        """Return whether a page of `origin` may use this: browsers send anybody's form without asking first."""
        if origin is None or origin in self._origins or "*" in self._origins:
            return True
        scheme, _, page = origin.lower().partition("://")
        # a browser may know the server by another of its names than the page's script does
        page, host = (_LOOPBACK.sub("localhost", name) for name in (page, host))
        return bool(host) and scheme in ("http", "https") and page == host

    def _has_key(self, authorization: str) -> bool:
        if self._key is None:
            return True
        # the bytes that came: as text, only ASCII could be compared
        scheme, _, key = authorization.encode("latin-1").partition(b" ")
        return hmac.compare_digest(key.strip(), self._key) and scheme.lower() == b"bearer"


def _head_bytes(scope: Scope) -> int:
    headers = sum(len(name) + len(value) for name, value in scope["headers"])
    return headers + len(scope.get("raw_path") or b"") + len(scope["query_string"])


class JoinTrace:
    """Lets an answer's spans be children of what its client names in ``traceparent``. Only where it is traced."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self._app = app
        self._tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        with self._tracing.joined(Headers(scope=scope)):
            await self._app(scope, receive, send)
