"""The routes of the handoff state. All lie under ``/v1``: vLLM's API key guards nothing else."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import anyio
from fastapi import APIRouter, Query
from starlette.requests import Request  # noqa: TC002 - FastAPI reads the annotation
from starlette.responses import JSONResponse, Response
from starlette.routing import Match

from pdd_core.errors import HandoffNotFound, InvalidOptIn
from pdd_core.fingerprint import PIECE
from pdd_core.handoff import CloudInfo, HandoffDeleted, HandoffState, Status, VocabularyPiece
from pdd_core.optin import check_handoff_id
from pdd_vllm_plugin import openai_json
from pdd_vllm_plugin.cancel import cancel, confirm

if TYPE_CHECKING:
    from pdd_vllm_plugin.handoff_record import HandoffRecord
    from pdd_vllm_plugin.handoff_service import HandoffService

MAX_WAIT_S = 60.0
_METHODS = ["DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"]


def make_router(service: HandoffService) -> APIRouter:
    """Routes over `service`, which `init_state` completes before the first request."""
    router = APIRouter(tags=["pdd"])

    def state_of(record: HandoffRecord, after: int = 0) -> HandoffState:
        return record.state(expires=time.time() + service.store.expires_in(record), after=after)

    @router.get("/v1/pdd/info", response_model=CloudInfo)
    async def info() -> Response:
        """Tell what the plugin is and what is switched on."""
        return Response(service.info_json, media_type="application/json")

    @router.get("/v1/pdd/vocabulary", response_model=VocabularyPiece)
    async def vocabulary(start: Annotated[int, Query(ge=0)] = 0) -> VocabularyPiece:
        """Send what tokens mean, so that a device can name the first one on which it differs."""
        return VocabularyPiece(start=start, tokens=service.vocabulary[start : start + PIECE])

    @router.get("/v1/pdd/handoffs/{handoff_id}", response_model=HandoffState)
    async def get_handoff(
        handoff_id: str,
        wait: Annotated[float | None, Query(ge=0, le=MAX_WAIT_S)] = None,
        after: Annotated[int, Query(ge=0)] = 0,
    ) -> Response:
        """Send the state now, or after up to `wait` seconds when it changes.

        A change is the refined prompt's being there, then the request's end. Without `wait`, only a refined prompt
        that is being made is waited for: it is part of the state from the first token on.
        """
        try:
            record = service.store.get(handoff_id)
        except HandoffNotFound as error:
            return openai_json.error(404, str(error))
        if record.refinement_pending and (wait or record.refining):
            with anyio.move_on_after(service.config.cancel_timeout_s if wait is None else wait):
                await record.refined.wait()
        elif wait and record.status is Status.RUNNING:
            with anyio.move_on_after(wait):
                await record.changed.wait()
        return Response(state_of(record, after).model_dump_json(), media_type="application/json")

    @router.delete("/v1/pdd/handoffs/{handoff_id}", response_model=HandoffDeleted)
    async def delete_handoff(handoff_id: str, used: Annotated[int | None, Query(ge=0)] = None) -> Response:
        """Stop the cloud's decoding, drop the state, and answer when the engine has confirmed.

        `used` says how many tokens of the answer the client had a use for; it is only counted.
        """
        try:
            record = service.store.get(handoff_id)
        except HandoffNotFound as error:
            return await forget_unknown(handoff_id, error)
        service.store.delete(handoff_id)
        answer = await stopped(handoff_id, record, object_name="pdd.handoff.deleted")
        if used is not None:
            service.metrics.used(record, used)
        return answer

    async def forget_unknown(handoff_id: str, error: HandoffNotFound) -> Response:
        if service.store.was_deleted(handoff_id):
            return await stopped(handoff_id, None, object_name="pdd.handoff.deleted")
        try:
            # It may have overtaken its POST: the id is refused for a minute.
            service.store.delete(check_handoff_id(handoff_id))
        except InvalidOptIn:
            return openai_json.error(404, str(error))
        return openai_json.error(404, f"{error}; a request that comes with this id within a minute is refused")

    @router.get("/v1/chat/completions/{completion_id}")
    async def get_chat_completion(completion_id: str) -> Response:
        """Send the state in OpenAI's shape; takes the completion's id or the handoff id."""
        record = the_one(completion_id)
        if isinstance(record, Response):
            return record
        return JSONResponse(openai_json.chat_completion(record, state_of(record)))

    @router.delete("/v1/chat/completions/{completion_id}")
    async def delete_chat_completion(completion_id: str) -> Response:
        """Stop and drop, in OpenAI's shape."""
        record = the_one(completion_id)
        if isinstance(record, Response):
            # A live record comes first: clients can send one X-Request-Id again after its DELETE.
            if record.status_code == 404 and service.store.was_deleted(completion_id):
                return await stopped(completion_id, None, object_name="chat.completion.deleted")
            return record
        service.store.delete(record.opt_in.handoff_id)
        return await stopped(completion_id, record, object_name="chat.completion.deleted")

    @router.api_route("/v1/pdd/{path:path}", methods=_METHODS, include_in_schema=False)
    async def nothing_here(request: Request) -> Response:
        """Refuse what none of the routes above takes: FastAPI's own answer is no error object."""
        here = (route for route in router.routes if route.matches(request.scope)[0] is Match.PARTIAL)
        allowed = ", ".join(sorted({method for route in here for method in getattr(route, "methods", ())}))
        what = f"{request.method} {request.url.path[:200]}"
        if allowed:
            return openai_json.error(405, f"Method Not Allowed: {what}", headers={"allow": allowed})
        return openai_json.error(404, f"Not Found: {what}")

    def the_one(completion_id: str) -> HandoffRecord | Response:
        records = service.store.find(completion_id)
        if not records:
            return openai_json.error(404, "no opted-in completion has this id: it is unknown, expired or deleted")
        if len(records) > 1:
            return openai_json.error(409, "several requests were sent with this X-Request-Id: use the handoff id")
        return records[0]

    async def stopped(shown_id: str, record: HandoffRecord | None, *, object_name: str) -> Response:
        # Without a record it was deleted before: only the engine's word may still be missing.
        engine, timeout = service.engine_client, service.config.cancel_timeout_s
        running = record is not None and record.status is Status.RUNNING
        confirmed = await (confirm(engine, timeout) if record is None else cancel(engine, record, timeout))
        if running:
            service.metrics.cancelled(confirmed=confirmed)
        body: dict[str, Any] = HandoffDeleted(id=shown_id, object=object_name, confirmed=confirmed).model_dump()
        return JSONResponse(body, status_code=200 if confirmed else 202)

    return router
