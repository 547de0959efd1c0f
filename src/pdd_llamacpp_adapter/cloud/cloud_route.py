"""How a cloud is asked what is no answer: by the routes under ``/v1/pdd``, or by a POST to a path that all know.

A router between may know a fixed list of paths, or pass others on without headers and query string. Which way gets
through is found when the device connects, here and nowhere else, and holds for all that is asked later.
"""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import openai
from pydantic import BaseModel

from pdd_core.errors import CloudRefused
from pdd_core.handoff import BY_POST, CloudInfo, VocabularyPiece
from pdd_core.state_request import StateRequest, Verb
from pdd_llamacpp_adapter.cloud.cloud_errors import answered
from pdd_llamacpp_adapter.cloud.cloud_gate import CELLS, Response, parsed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pdd_llamacpp_adapter.cloud.cloud_sessions import CloudSession, CloudSessions

Wire = TypeVar("Wire", bound=BaseModel)

POST_PATH = "/completions"
_NO_KEY = frozenset({401, 403})
_NOT_HERE = frozenset({404, 405})
_SERVER_ERROR = 500
_INFO = StateRequest(Verb.INFO)
_SECOND_TOKEN = StateRequest(Verb.VOCABULARY, start=1)


class Way(StrEnum):
    """How the cloud is asked."""

    ROUTES = "routes"
    """``GET /v1/pdd/info`` and so on."""
    POST = "post"
    """``POST /v1/completions`` with fields in ``vllm_xargs``: `pdd_core.state_request`."""


class CloudRoute:
    """The way to one cloud.

    Args:
        client: of the cloud.
        sessions: the conversations with it: what is asked about a handoff goes where that is.
        model_name: returns the name of the cloud's model, by which a router chooses.
    """

    def __init__(
        self, client: openai.AsyncOpenAI, sessions: CloudSessions, model_name: Callable[[], Awaitable[str]]
    ) -> None:
        self._client = client
        self._sessions = sessions
        self._model_name = model_name
        self.way: Way | None = None
        """Which one gets through; None before `connect` has found out."""

    async def connect(self, *, retries: int = 2) -> CloudInfo:
        """Return what the cloud is, by the way that gets through.

        Raises:
            CloudUnreachable: no connection.
            CloudRefused: neither way is answered; the message says how each failed.
            SchemaVersionError: the cloud speaks a newer major version of the wire schema.
        """
        if self.way is Way.POST:
            try:
                return parsed(await self.by_post(_INFO, retries=retries), CloudInfo)
            except CloudRefused as error:
                if error.status is not None and error.status >= _SERVER_ERROR:
                    raise  # what is behind the router does not answer; another way would not help
                self.way = None  # the router may be another one by now
        try:
            info = parsed(await self.by_route(_INFO, retries=retries), CloudInfo)
        except CloudRefused as error:
            if error.status is not None and error.status not in _NO_KEY | _NOT_HERE:
                raise
            info = await self._posted(error, retries)
            self.way = Way.POST
            return info
        if self.way is None:
            knows = BY_POST in info.features
            self.way = Way.POST if knows and not await self.keeps_query(retries=retries) else Way.ROUTES
        return info

    async def _posted(self, refusal: CloudRefused, retries: int) -> CloudInfo:
        """Return what the cloud tells in answer to a POST, after its route was refused."""
        try:
            return parsed(await self.by_post(_INFO, retries=retries), CloudInfo)
        except CloudRefused as error:
            raise self._no_way(refusal, error) from refusal

    def _no_way(self, route: CloudRefused, post: CloudRefused) -> CloudRefused:
        """Return the error of a cloud that is asked in vain both ways."""
        if route.status in _NO_KEY and post.status in _NO_KEY:
            return route
        url = self._client.base_url
        if route.status == 404:
            return CloudRefused(
                f"the server at {url} answers, but without the pdd plugin: start vLLM with VLLM_PLUGINS=pdd in "
                f"its environment. If a router is between, it lets nothing through to the plugin ({post})",
                status=404,
                code=route.code,
            )
        if route.status is None:
            return CloudRefused(f"{route}. The same by POST: {post}", code=route.code)
        return CloudRefused(
            f"a router at {url} refuses GET /v1/pdd/info ({route}), though the key is right for other routes. The "
            f"cloud does not answer the same by POST ({post}): update pdd-device there, or have the router pass "
            "/v1/pdd on with its headers",
            code=route.code,
        )

    async def keeps_query(self, *, retries: int = 2) -> bool:
        """Return whether a query string reaches the routes under ``/v1/pdd``."""
        try:
            piece = parsed(await self.by_route(_SECOND_TOKEN, retries=retries), VocabularyPiece)
        except CloudRefused:
            return False
        return piece.start == _SECOND_TOKEN.start

    async def ask(self, question: StateRequest, wire: type[Wire], *, retries: int = 2) -> Wire:
        """Return the answer to `question`.

        Raises:
            CloudUnreachable: no connection.
            CloudRefused: an error answer, or one that is no `wire`.
            SchemaVersionError: the cloud speaks a newer major version of the wire schema.
        """
        asked = self.by_post if self.way is Way.POST else self.by_route
        return parsed(await asked(question, retries=retries), wire)

    async def cells(self, question: StateRequest) -> openai.AsyncStream[object]:
        """Return the answer to a question for cells, with nothing read yet.

        Raises:
            CloudUnreachable, CloudRefused: as `ask`.
        """
        client, path = self._client.with_options(max_retries=0), _path(question)
        unread: dict[str, Any] = {"cast_to": object, "stream": True, "stream_cls": openai.AsyncStream[object]}
        if self.way is Way.POST:
            path, body = POST_PATH, await self._body(question)
            session, headers = self._headers(question, path)
            sent = client.post(path, body=body, options={"headers": {**headers, **CELLS}}, **unread)
        else:
            session, headers = self._headers(question, path)
            sent = client.get(path, options={"headers": {**headers, **CELLS}}, **unread)
        stream: openai.AsyncStream[object] = await answered(sent)
        self._sessions.received(session, stream.response)
        return stream

    async def by_route(self, question: StateRequest, *, retries: int = 2) -> bytes:
        """Return what the route under ``/v1/pdd`` answers, unread.

        Raises:
            CloudUnreachable, CloudRefused: as `ask`.
        """
        client, path = self._client.with_options(max_retries=retries), _path(question)
        send = client.delete if question.verb is Verb.CANCEL else client.get
        return await self._sent(question, path, lambda options: send(path, cast_to=Response, options=options))

    async def by_post(self, question: StateRequest, *, retries: int = 2) -> bytes:
        """Return what a POST with the question is answered, unread.

        Raises:
            CloudUnreachable, CloudRefused: as `ask`.
        """
        client = self._client.with_options(max_retries=retries)
        body = await self._body(question)
        return await self._sent(
            question,
            POST_PATH,
            lambda options: client.post(POST_PATH, cast_to=Response, body=body, options=options),
        )

    async def _body(self, question: StateRequest) -> dict[str, object]:
        return {
            "model": await self._model_name(),
            "prompt": "",
            "max_tokens": 1,  # of a server that does not know the question
            "vllm_xargs": question.xargs(),
        }

    async def _sent(self, question: StateRequest, path: str, send: Callable[[Any], Awaitable[Response]]) -> bytes:
        session, headers = self._headers(question, path)
        response = await answered(send({"headers": headers}))
        self._sessions.received(session, response)
        return response.content

    def _headers(self, question: StateRequest, path: str) -> tuple[CloudSession | None, dict[str, str]]:
        session = self._sessions.of_handoff(question.id) if question.id else None
        return session, self._sessions.headers(session, f"{self._client.base_url}{path.removeprefix('/')}")


def _path(question: StateRequest) -> str:
    """Return the path and query below ``/v1``."""
    match question.verb:
        case Verb.INFO:
            return "/pdd/info"
        case Verb.VOCABULARY:
            return f"/pdd/vocabulary?start={question.start}"
    asked = {
        "after": question.after or None,
        "wait": None if question.wait is None else f"{question.wait:g}",
        "used": question.used,
        "from": question.begin or None,
        "to": question.end,
    }
    query = urlencode({name: value for name, value in asked.items() if value is not None})
    path = f"/pdd/handoffs/{quote(question.id, safe='')}" + ("/kv" if question.verb is Verb.CELLS else "")
    return f"{path}?{query}" if query else path
