"""``/v1/pdd/status``: the queue, the last answers in figures, and what was learnt. Page ``/status`` reads it."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from starlette.responses import JSONResponse, Response
from starlette.routing import Route

if TYPE_CHECKING:
    from starlette.requests import Request

    from pdd_llamacpp_adapter.server.answers.service import Service

PATH = "/v1/pdd/status"


def routes(service: Service) -> list[Route]:
    """Return the route."""

    async def status(_: Request) -> Response:
        runtime, queue, limits = service.loaded(), service.queue, service.limits
        told = {
            "object": "pdd.status",
            "version": version("pdd-device"),
            "model": {
                "id": runtime.model_name,
                "loaded": runtime.created,
                "max_model_len": runtime.context_limit(),
            },
            "queue": {
                "running": queue.running,
                "waiting": queue.waiting,
                "max_running": limits.max_running,
                "max_queue": limits.max_queue,
            },
            "cloud": runtime.cloud_status(),
            "learnt": runtime.learnt(),
            "answers": service.recent.list(),
        }
        return JSONResponse(told, headers={"cache-control": "no-store"})

    return [Route(PATH, status)]
