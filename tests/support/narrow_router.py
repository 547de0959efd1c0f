"""A router between clients and vLLMs that lets through as little as those that people run: see docs/deploy.md.

It stands in for them where a test needs to see what a router took away, or needs one in milliseconds.
"""

import itertools
import socket
import threading
import zlib
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx2
import uvicorn
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route

KNOWN = (
    "/health",
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/models",
    "/v1/responses",
)
"""What every router forwards whole."""
_HOP = {"connection", "content-length", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade"}
"""Headers of one connection, which no proxy forwards."""
METHODS = ["GET", "POST", "DELETE", "PUT", "PATCH"]


@dataclass
class Seen:
    """One request as it came, and where it went."""

    method: str
    path: str
    query: str
    headers: dict
    upstream: str | None = None
    status: int = 0


@dataclass
class NarrowRouter:
    """Forwards to `upstreams` from a free port of 127.0.0.1, on a thread of its own. A context manager::

        with NarrowRouter([server.root_url], drops="headers") as router:
            openai.OpenAI(base_url=f"{router.url}/v1")

    `upstreams` and `url` are without a path. `routes`: the only paths that exist, others are answered with a 404;
    None forwards all. `drops="headers"`: requests for paths outside `KNOWN` lose all headers and the query string,
    as with vllm-router. Requests with one `session_header`, or with the `cookie` that the first answer set, reach
    one upstream; the others take turns. An upstream that is gone is answered with a 502, without a retry.
    """

    upstreams: list
    routes: tuple | None = None
    drops: str = ""
    session_header: str | None = "X-Session-ID"
    cookie: str | None = None
    seen: list = field(default_factory=list)
    url: str = ""

    def __enter__(self):
        routes = [Route("/{path:path}", self._forward, methods=METHODS)]
        app = Starlette(routes=routes, lifespan=self._lifespan)
        config = uvicorn.Config(app, log_config=None, ws="none", timeout_graceful_shutdown=1)
        listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        self._turns = itertools.cycle(self.upstreams)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([listening],), name="router", daemon=True)
        self._thread.start()  # those who connect before it runs wait: the socket listens
        return self

    def __exit__(self, *_):
        self._server.should_exit = True
        self._thread.join(10)

    @asynccontextmanager
    async def _lifespan(self, _):
        self._http = httpx2.AsyncClient(timeout=None, trust_env=False)
        async with self._http:
            yield

    def of_session(self, session):
        """The upstream of this session."""
        return self.upstreams[zlib.crc32(session.encode()) % len(self.upstreams)]

    def _upstream(self, request):
        named = request.cookies.get(self.cookie) if self.cookie else None
        if named and named.isdigit() and int(named) < len(self.upstreams):
            return self.upstreams[int(named)]
        session = request.headers.get(self.session_header) if self.session_header else None
        return self.of_session(session) if session else next(self._turns)

    async def _forward(self, request):
        path, query = request.url.path, request.url.query
        came = {name: text for name, text in request.headers.items() if name not in _HOP}
        note = Seen(request.method, path, query, came)
        self.seen.append(note)
        if self.routes is not None and path not in self.routes:
            note.status = 404
            return JSONResponse({"detail": "Not Found"}, 404)
        headers = came
        if self.drops == "headers" and path not in KNOWN:
            headers = {name: text for name, text in came.items() if name == "content-type"}
            query = ""
        note.upstream = upstream = self._upstream(request)
        target = f"{upstream}{path}" + (f"?{query}" if query else "")
        sent = self._http.build_request(request.method, target, headers=headers, content=await request.body())
        try:
            answer = await self._http.send(sent, stream=True)
        except httpx2.TransportError:
            note.status = 502
            return JSONResponse({"error": {"message": "the upstream is gone", "code": 502}}, 502)
        note.status = answer.status_code
        back = {name: text for name, text in answer.headers.items() if name not in _HOP}
        response = StreamingResponse(self._body(answer), answer.status_code, back)
        if self.cookie:
            response.set_cookie(self.cookie, str(self.upstreams.index(upstream)))
        return response

    @staticmethod
    async def _body(answer):
        """Pass bytes on as they come. A client that leaves closes the upstream's connection."""
        try:
            async for part in answer.aiter_raw():
                yield part
        finally:
            await answer.aclose()
