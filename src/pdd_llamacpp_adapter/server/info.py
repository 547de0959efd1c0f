"""What the server is and has: ``/health``, ``/version``, ``/metrics``, ``/v1/models``."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pdd_llamacpp_adapter.server.answers.read_request import check_model

if TYPE_CHECKING:
    from starlette.requests import Request

    from pdd_llamacpp_adapter.server.answers.service import AnswerSource, Service
    from pdd_llamacpp_adapter.server.wire.json_body import Json


def routes(service: Service) -> list[Route]:
    """Return the routes that answer at once."""

    async def health(_: Request) -> Response:
        # a server without its model does not come this far
        return JSONResponse({"status": "ok"})

    async def tell_version(_: Request) -> Response:
        return JSONResponse({"version": version("pdd-device")})

    async def metrics(_: Request) -> Response:
        return Response(service.metrics.text(), headers={"content-type": CONTENT_TYPE_LATEST})

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [_model(service.loaded())]})

    async def model(request: Request) -> Response:
        runtime = service.loaded()
        check_model(request.path_params["model"], runtime)
        return JSONResponse(_model(runtime))

    return [
        Route("/health", health),
        Route("/v1/health", health),
        Route("/version", tell_version),
        Route("/metrics", metrics),
        Route("/v1/models", models),
        Route("/v1/models/{model:path}", model),
    ]


def _model(runtime: AnswerSource) -> Json:
    """Return OpenAI's model object with vLLM's `max_model_len` and the cloud's state.

    https://platform.openai.com/docs/api-reference/models/object
    """
    return {
        "id": runtime.model_name,
        "object": "model",
        "created": runtime.created,
        "owned_by": "pdd-device",
        "max_model_len": runtime.context_limit(),
        "pdd": {"cloud": runtime.cloud_status()},
    }
