"""The pages and their files: read once, served as they are. Nothing in them is made from a request."""

from __future__ import annotations

from importlib.resources import files
from typing import TYPE_CHECKING

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
_FILES = {file.name: file.read_bytes() for file in (files(__package__) / "files").iterdir()}
_HEADERS = {
    # nothing from elsewhere, and nothing inline: text of an answer can never become a program
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "cache-control": "no-cache",
}
PATHS = frozenset({"/", "/status"}) | {f"/ui/{name}" for name in _FILES if not name.endswith(".html")}
"""Everything that is served here, to everyone who may reach the server: no key is needed."""


def routes() -> list[Route]:
    """Return the routes of the pages and of what they load."""

    async def chat(_: Request) -> Response:
        return _file("chat.html")

    async def status(_: Request) -> Response:
        return _file("status.html")

    async def file(request: Request) -> Response:
        if request.url.path not in PATHS:
            raise HTTPException(404)
        return _file(request.path_params["name"])

    return [Route("/", chat), Route("/status", status), Route("/ui/{name}", file)]


def _file(name: str) -> Response:
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(_FILES[name], headers={**_HEADERS, "content-type": kind})
