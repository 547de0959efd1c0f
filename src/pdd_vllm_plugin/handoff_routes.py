"""The routes of the handoff state. All lie under ``/v1``: vLLM's API key guards nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from fastapi import APIRouter, Query
from pydantic import Field
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation
from starlette.responses import Response
from starlette.routing import Match

from pdd_core.handoff import CloudInfo, HandoffDeleted, HandoffState, VocabularyPiece
from pdd_core.optin import COUNTS_BELOW
from pdd_core.state_request import MAX_WAIT_S, StateRequest, Verb
from pdd_vllm_plugin import openai_json

if TYPE_CHECKING:
    from pdd_vllm_plugin.handoff_service import HandoffService

_Count = Annotated[int, Field(ge=0, lt=COUNTS_BELOW)]
_METHODS = ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"]


def make_router(service: HandoffService) -> APIRouter:
    """Routes over `service`, which `init_state` completes before the first request."""
    router = APIRouter(tags=["pdd"])
    answer = service.answers.answer

    @router.get("/v1/pdd/info", response_model=CloudInfo)
    async def info() -> Response:
        """Tell what the plugin is and what is switched on."""
        return await answer(StateRequest(Verb.INFO))

    @router.get("/v1/pdd/vocabulary", response_model=VocabularyPiece)
    async def vocabulary(start: _Count = 0) -> Response:
        """Send what tokens mean, so that a device can name the first one on which it differs."""
        return await answer(StateRequest(Verb.VOCABULARY, start=start))

    @router.get("/v1/pdd/handoffs/{handoff_id}", response_model=HandoffState)
    async def get_handoff(
        handoff_id: str,
        wait: Annotated[float | None, Query(ge=0, le=MAX_WAIT_S)] = None,
        after: _Count = 0,
    ) -> Response:
        """Send the state now, or after up to `wait` seconds when it changes: `StateAnswers`."""
        return await answer(StateRequest(Verb.READ, handoff_id, after=after, wait=wait))

    @router.delete("/v1/pdd/handoffs/{handoff_id}", response_model=HandoffDeleted)
    async def delete_handoff(handoff_id: str, used: _Count | None = None) -> Response:
        """Stop the cloud's decoding, drop the state, and answer when the engine has confirmed.

        `used` says how many tokens of the answer the client had a use for; it is only counted.
        """
        return await answer(StateRequest(Verb.CANCEL, handoff_id, used=used))

    @router.get("/v1/pdd/handoffs/{handoff_id}/kv", response_class=Response)
    async def get_cells(
        handoff_id: str,
        begin: Annotated[_Count, Query(alias="from")] = 0,
        end: Annotated[_Count | None, Query(alias="to")] = None,
    ) -> Response:
        """Stream the prompt's KV cache from position `to` back to position `from`: `pdd_core.kv.frames`."""
        return await answer(StateRequest(Verb.CELLS, handoff_id, begin=begin, end=end))

    @router.get("/v1/chat/completions/{completion_id}")
    async def get_chat_completion(completion_id: str) -> Response:
        """Send the state in OpenAI's shape; takes the completion's id or the handoff id."""
        return await answer(StateRequest(Verb.RETRIEVE, completion_id))

    @router.delete("/v1/chat/completions/{completion_id}")
    async def delete_chat_completion(completion_id: str) -> Response:
        """Stop and drop, in OpenAI's shape."""
        return await answer(StateRequest(Verb.DELETE, completion_id))

    @router.api_route("/v1/pdd/{path:path}", methods=_METHODS, include_in_schema=False)
    async def nothing_here(request: Request) -> Response:
        """Refuse what none of the routes above takes: FastAPI's own answer is no error object."""
        here = (route for route in router.routes if route.matches(request.scope)[0] is Match.PARTIAL)
        allowed = ", ".join(sorted({method for route in here for method in getattr(route, "methods", ())}))
        what = f"{request.method} {request.url.path[:200]}"
        if allowed:
            return openai_json.error(405, f"Method Not Allowed: {what}", headers={"allow": allowed})
        return openai_json.error(404, f"Not Found: {what}")

    return router
